//go:build !linux

package faults_test

import (
	"fmt"
	"os"
	"testing"
)

func TestMain(*testing.M) {
	fmt.Println("integration/faults: NOT RUN: it needs Linux: a file system of a chosen size, and libfaketime")
	if os.Getenv("CI") != "" {
		os.Exit(1)
	}
}
