package dblock

// Token is a fencing token: of two grants of one key, the later one's is greater, over restarts,
// failovers and restores of the database too. Store it with what you write, and refuse a write
// whose token is smaller than the one stored: the writer has lost its lock.
//
// Shared locks that are held together have different tokens in no order; each is greater than those of the exclusive
// locks before, and smaller than those after. It is positive, and not dense.
type Token int64

// The parts of a token, from the top: an epoch (15 bits), a number of the sequence (38 bits), and
// which hand-over inside one process this is (10 bits).
const (
	sequenceBits = 38
	localBits    = 10
	maxLocal     = 1<<localBits - 1
)

// newToken adds the epoch and does not concatenate it, so that a sequence that runs over its bits
// carries into the epoch and the order stays.
func newToken(epoch, sequence int64, local int) Token {
	return Token((epoch<<sequenceBits+sequence)<<localBits | int64(local))
}
