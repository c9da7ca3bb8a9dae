//go:build unix && !linux

package dblock_test

import "time"

// monotonic is a clock that all processes of this machine share. Nobody may set it while tests run.
func monotonic() int64 { return time.Now().UnixNano() }
