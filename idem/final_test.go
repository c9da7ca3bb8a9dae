package idem

import (
	"bytes"
	"testing"
)

// What is stored of a refusal comes back, and what was damaged is found out.
func TestRefusalsPackAndUnpack(t *testing.T) {
	t.Parallel()
	for _, reason := range []string{"", "account closed", string(make([]byte, 300))} {
		for _, value := range [][]byte{nil, {}, []byte(`"x"`), {1}, {0}} {
			packed := packRefusal(reason, value)
			r, v, err := unpackRefusal(packed)
			if err != nil || r != reason || !bytes.Equal(v, value) || (v == nil) != (value == nil) {
				t.Errorf("%.20q, %q came back as %.20q, %q, %v", reason, value, r, v, err)
			}
			for n := range min(len(reason), 5) {
				if _, _, err := unpackRefusal(packed[:n]); err == nil {
					t.Errorf("%.20q cut to %d bytes is not found out", reason, n)
				}
			}
		}
	}
	for _, data := range [][]byte{nil, {}, {0xff}, {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, {0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01}} {
		if _, _, err := unpackRefusal(data); err == nil {
			t.Errorf("%x is not found out", data)
		}
	}
}
