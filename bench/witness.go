package main

import (
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"unsafe"

	"github.com/pgonce/pgonce/dblock"
)

// witness sees from outside whether a lock excludes: by memory that all who use the key share.
type witness struct {
	*cells
	mapped []byte
}

type cells struct{ inside, token, overlaps, backwards atomic.Int64 }

// newWitness is for the goroutines of this process.
func newWitness() *witness { return &witness{cells: &cells{}} }

// openWitness is for processes that share a file.
func openWitness(name string) (*witness, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	size := int(unsafe.Sizeof(cells{}))
	if err := f.Truncate(int64(size)); err != nil {
		return nil, err
	}
	mapped, err := syscall.Mmap(int(f.Fd()), 0, size, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("share memory: %w", err)
	}
	return &witness{cells: (*cells)(unsafe.Pointer(&mapped[0])), mapped: mapped}, nil // a page is aligned
}

func (w *witness) close() error { return syscall.Munmap(w.mapped) }

// enter is called when the lock is granted. Token 0 is for locks without. Who is not 0.
func (w *witness) enter(who int64, token dblock.Token) {
	if !w.inside.CompareAndSwap(0, who) {
		w.overlaps.Add(1)
	}
	if token != 0 && w.token.Swap(int64(token)) >= int64(token) {
		w.backwards.Add(1)
	}
}

// leave is called before the lock is given back.
func (w *witness) leave(who int64) {
	if !w.inside.CompareAndSwap(who, 0) {
		w.overlaps.Add(1)
	}
}

// verdict is nil if nothing was wrong.
func (w *witness) verdict() error {
	if o, b := w.overlaps.Load(), w.backwards.Load(); o > 0 || b > 0 {
		return fmt.Errorf("exclusion is broken: %d overlaps, %d tokens that did not grow", o, b)
	}
	return nil
}
