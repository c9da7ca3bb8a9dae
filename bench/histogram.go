package main

import (
	"math/bits"
	"time"
)

// histogram counts durations, to within two per cent, in little memory. It is one goroutine's; [histogram.add] makes
// one of many.
type histogram struct {
	Counts map[int]int64 // by bucket; it travels between processes
	dense  [64 << fineBits]int64
}

// fineBits is how many bits of a duration below its highest one are kept.
const fineBits = 5

func bucketOf(d time.Duration) int {
	n := uint64(max(d, 0))
	if n < 1<<fineBits {
		return int(n)
	}
	shift := bits.Len64(n) - 1 - fineBits
	return shift<<fineBits + int(n>>shift)
}

// middle is the duration that a bucket stands for.
func middle(bucket int) time.Duration {
	if bucket < 1<<fineBits {
		return time.Duration(bucket)
	}
	shift := bucket>>fineBits - 1
	low := uint64(bucket-shift<<fineBits) << shift
	return time.Duration(low + 1<<shift/2)
}

func (h *histogram) record(d time.Duration) { h.dense[bucketOf(d)]++ }

// pack moves the counts to where they can travel.
func (h *histogram) pack() {
	h.Counts = map[int]int64{}
	for i, n := range h.dense {
		if n > 0 {
			h.Counts[i] = n
		}
	}
}

// add takes in one that is packed.
func (h *histogram) add(o *histogram) {
	for i, n := range o.Counts {
		h.dense[i] += n
	}
}

// quantile is the duration that the given part of all stays below.
func (h *histogram) quantile(part float64) time.Duration {
	var all, seen int64
	for _, n := range h.dense {
		all += n
	}
	for i, n := range h.dense {
		if seen += n; n > 0 && float64(seen) >= part*float64(all) {
			return middle(i)
		}
	}
	return 0
}
