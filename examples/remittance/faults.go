package main

import (
	"context"
	"time"
)

// faults is what goes wrong during a storm, beside the bank.
type faults struct {
	kills, steps int
	again        int64
}

// strike breaks something at certain points of the storm: every worker is killed once, and jobs are delivered again.
func (f *faults) strike(ctx context.Context, s *storm) error {
	const steps = 25
	if f.kills < len(s.workers) && s.total > 0 && s.done >= (f.kills+1)*s.total/(len(s.workers)+2) {
		p := s.workers[(f.kills+int(s.Seed%97))%len(s.workers)]
		p.Kill()
		f.kills++
		down := time.Now()
		if err := p.Start(); err != nil {
			return err
		}
		s.Say("%d of %d messages answered: %s killed with SIGKILL, back after %d ms", s.done, s.total, p.Name, time.Since(down).Milliseconds())
	}
	if f.steps < steps && s.total > 0 && s.done >= (f.steps+1)*s.total/(steps+1) {
		f.steps++
		n, err := s.jobs.Again(ctx, f.steps, 10)
		f.again += n
		return err
	}
	return nil
}
