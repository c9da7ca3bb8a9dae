package dblock

import "testing"

// A later epoch, a later number and a later hand-over each make a greater token, and a sequence
// that runs over its bits carries.
func TestTokensAreOrdered(t *testing.T) {
	t.Parallel()
	const full = 1<<sequenceBits - 1
	inOrder := []Token{
		newToken(1, 1, 0), newToken(1, 1, 1), newToken(1, 1, maxLocal), newToken(1, 2, 0), newToken(1, full, maxLocal),
		newToken(1, full+1, 0), newToken(2, 1, 0), newToken(2, full, 3), newToken(3, 0, 0), newToken(1<<15-1, full, maxLocal),
	}
	for i, token := range inOrder {
		if token <= 0 || i > 0 && token <= inOrder[i-1] {
			t.Errorf("token %d is %d, after %v", i, token, inOrder[:i])
		}
	}
}
