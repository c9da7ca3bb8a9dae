package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"
)

// hotKeyOfProcesses is S3.
func hotKeyOfProcesses() target {
	return target{"S3", "4 processes with 8 goroutines each fight for one key", measureHotKeyOfProcesses}
}

const (
	processes       = 4
	workersOfEach   = 8
	queueContender  = "pg_advisory_lock, a connection each"
	busyHold        = 200 * time.Microsecond
	mostBusyProcess = 1.2
)

func measureHotKeyOfProcesses(ctx context.Context, g *ground) error {
	file := filepath.Join(g.dir, "witness")
	w, err := openWitness(file)
	if err != nil {
		return err
	}
	all, err := startWorkers(g.postgres.url, file, processes)
	if err == nil {
		err = errors.Join(g.fightOfProcesses(ctx, w, all, 0, 10, 0.5), g.fightOfProcesses(ctx, w, all, busyHold, 1.2, 1.1))
	}
	return errors.Join(err, all.stop(), w.close())
}

func (g *ground) fightOfProcesses(ctx context.Context, w *witness, all workers, hold time.Duration, faster, waits float64) error {
	row := fmt.Sprintf("hold=%dus", hold.Microseconds())
	var contenders []contender
	for _, name := range []string{us, queueContender} {
		contenders = append(contenders, contender{name: name, elsewhere: true, run: func(ctx context.Context, d time.Duration) (sample, error) {
			s, err := all.run(ctx, job{Contender: name, Hold: hold, Time: d, Profile: g.profile(name, "S3 "+row+" process")})
			return s, errors.Join(err, w.verdict())
		}})
	}
	found, err := g.alternate(ctx, "S3 "+row, contenders)
	if err != nil {
		return err
	}
	g.report.compare(row, "hand-offs/s", contenders, found)
	ours, queue := found[us], found[queueContender]
	g.report.atLeast(row+" vs=queue", "ratio", ours.over(queue, (*sample).rate), faster)
	g.report.atMost(row+" vs=queue", "p99", ours.over(queue, (*sample).p99), waits)
	g.report.atMost(row, "most/least-process", 1/ours.of((*sample).evenness), mostBusyProcess)
	return nil
}
