package idemtest

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptrace"
	"time"
)

// replay: repeats are answered and not executed; another key is another request.
func (s *httpSuite) replay(ctx context.Context) error {
	plain := s.request
	s.request = func(n int) *http.Request {
		r := plain(n)
		r.Header.Set(replayedHeader, "true") // it is not the client who says so
		return r
	}
	defer func() { s.request = plain }()
	key := s.key()
	a, err := s.first(ctx, key)
	if err != nil {
		return err
	}
	if err := errors.Join(s.repeat(ctx, key, a), s.repeat(ctx, key, a)); err != nil {
		return err
	}
	_, err = s.first(ctx, s.key())
	return err
}

// forms: the quoted key of the draft and the bare one that most clients send.
func (s *httpSuite) forms(ctx context.Context) error {
	key := s.key()
	a, err := s.first(ctx, `"`+key+`"`)
	if err == nil {
		err = s.repeat(ctx, key, a)
	}
	return err
}

// mismatch: a used key is of no use for another request, and the first one is none the worse for it.
func (s *httpSuite) mismatch(ctx context.Context) error {
	key := s.key()
	first, err := s.first(ctx, key)
	if err != nil {
		return err
	}
	before, err := s.effects(ctx)
	if err != nil {
		return err
	}
	other, err := s.send(ctx, 2, key)
	if err != nil {
		return err
	}
	return errors.Join(other.is(http.StatusUnprocessableEntity), s.has(ctx, before), s.repeat(ctx, key, first))
}

// badKeys: no key, an empty one, two of them.
func (s *httpSuite) badKeys(ctx context.Context) error {
	before, err := s.effects(ctx)
	if err != nil {
		return err
	}
	key := s.key()
	bad := [][]string{{""}, {`""`}, {key, key}, {`"` + key + `", "` + key + `"`}}
	if !s.cfg.KeyOptional {
		bad = append(bad, nil)
	}
	var all error
	for _, keys := range bad {
		a, err := s.send(ctx, 1, keys...)
		if err == nil {
			err = a.is(http.StatusBadRequest)
		}
		if err != nil {
			all = errors.Join(all, fmt.Errorf("%d keys %q: %w", len(keys), keys, err))
		}
	}
	return errors.Join(all, s.has(ctx, before))
}

// duplicates: one of many at once is executed, the others get its answer or are told to come again.
func (s *httpSuite) duplicates(ctx context.Context) error {
	before, err := s.effects(ctx)
	if err != nil {
		return err
	}
	type outcome struct {
		httpAnswer
		err error
	}
	key, start, outcomes := s.key(), make(chan struct{}), make(chan outcome)
	for range s.cfg.Callers {
		go func() {
			<-start
			a, err := s.send(ctx, 1, key)
			outcomes <- outcome{a, err}
		}()
	}
	close(start)
	var all error
	var answers []httpAnswer
	executed := 0
	for range s.cfg.Callers {
		o := <-outcomes
		switch {
		case o.err != nil:
			all = errors.Join(all, o.err)
		case !o.succeeded():
			all = errors.Join(all, o.is(http.StatusConflict))
		default:
			if answers = append(answers, o.httpAnswer); !o.replayed() {
				executed++
			}
		}
	}
	if executed != 1 {
		all = errors.Join(all, fmt.Errorf("%d of %d got an answer that is no replay, want 1", executed, s.cfg.Callers))
	}
	for _, a := range answers {
		all = errors.Join(all, s.same(answers[0], a), s.repeat(ctx, key, a))
	}
	return errors.Join(all, s.has(ctx, before+1))
}

// goneClient: whether or not the request was executed when its client left, in the end it was executed once.
func (s *httpSuite) goneClient(ctx context.Context) error {
	before, err := s.effects(ctx)
	if err != nil {
		return err
	}
	const (
		rounds = 3
		atWork = 5 * time.Millisecond // what a service may be about to do after that, where we do not see it
	)
	for n := range rounds {
		key := s.key()
		leaving, leave := context.WithCancel(ctx)
		if s.leaves != nil {
			s.leaves.Store(&leave)
		} else {
			leaving = httptrace.WithClientTrace(leaving, &httptrace.ClientTrace{WroteRequest: func(httptrace.WroteRequestInfo) {
				time.AfterFunc(time.Duration(n)*atWork, leave)
			}})
		}
		_, _ = s.send(leaving, 1, key) // answered or not
		leave()
		a, err := s.settled(ctx, key)
		if err == nil {
			err = s.repeat(ctx, key, a)
		}
		if err != nil {
			return err
		}
	}
	return s.has(ctx, before+rounds)
}

// settled asks again until the request is not in flight any more.
func (s *httpSuite) settled(ctx context.Context, key string) (httpAnswer, error) {
	const pause = 20 * time.Millisecond
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Patience)
	defer cancel()
	for {
		a, err := s.send(ctx, 1, key)
		switch {
		case err != nil:
			return a, err
		case a.succeeded():
			return a, nil
		}
		if err := a.is(http.StatusConflict); err != nil {
			return a, err
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return a, fmt.Errorf("still in flight after %v: %w", s.cfg.Patience, ctx.Err())
		case <-timer.C:
		}
	}
}
