package idem

import (
	"testing"
	"time"
)

// Who has the turn may go on when it is time; others when it has not come for long; PurgeOnce always.
func TestBatchIsDueTo(t *testing.T) {
	t.Parallel()
	const me, other = 5, 6
	for _, tc := range []struct {
		me, worker int64
		wait       time.Duration
		want       bool
	}{
		{nobody, other, time.Hour, true},
		{me, me, 0, true},
		{me, me, time.Millisecond, false},
		{me, nobody, -time.Millisecond, true},
		{me, nobody, time.Millisecond, false},
		{me, other, 0, false},
		{me, other, -takeOver + time.Millisecond, false},
		{me, other, -takeOver, true},
	} {
		if got := (&batch{worker: tc.worker, wait: tc.wait}).dueTo(tc.me); got != tc.want {
			t.Errorf("%+v: got %v", tc, got)
		}
	}
}
