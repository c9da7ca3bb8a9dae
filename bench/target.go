package main

import "context"

// target is one row of the project's list of targets. Each has a file of its own.
type target struct {
	name    string
	about   string // what is measured, for the page
	measure func(context.Context, *ground) error
}

func targets() []target {
	return []target{
		distinctKeys(), hotKey(), hotKeyOfProcesses(), newKeysOfDo(), leftBehind(), repeats(), steps(), transitions(), waiterElsewhere(),
		manyLocks(), manyKeys(), purgeBesideLoad(),
	}
}

func names() (all []string) {
	for _, t := range targets() {
		all = append(all, t.name)
	}
	return all
}
