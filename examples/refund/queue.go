package main

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/examples/internal/demo"
	"github.com/pgonce/pgonce/examples/refund/payment"
	"github.com/riverqueue/river"
)

// publish puts a message into the queue.
func (s *storm) publish(ctx context.Context, o order) (job int64, err error) {
	res, err := s.queue.Insert(ctx, payment.Message{Request: s.request(o)}, nil)
	if err != nil {
		return 0, err
	}
	return res.Job.ID, nil
}

// collect waits until every message is acknowledged or put aside, and reads what became of it.
func (s *storm) collect(ctx context.Context, orders []order, jobs map[int64]int, answers []answer) error {
	ids := make([]int64, 0, len(jobs))
	for id := range jobs {
		ids = append(ids, id)
	}
	const open = `SELECT count(*) FROM shop_queue.river_job WHERE id = ANY($1) AND finalized_at IS NULL`
	if err := s.await(ctx, "the messages", open, ids); err != nil {
		return err
	}
	rows, _ := s.pool.Query(ctx, `SELECT id, metadata -> 'output' FROM shop_queue.river_job WHERE id = ANY($1)`, ids)
	var (
		id     int64
		output []byte
	)
	_, err := pgx.ForEachRow(rows, []any{&id, &output}, func() error {
		var told payment.Outcome
		i := jobs[id]
		answers[i].order = orders[i]
		if output == nil {
			return nil // put aside without a word: no answer
		}
		if err := json.Unmarshal(output, &told); err != nil {
			return err
		}
		answers[i].status, answers[i].replayed, answers[i].receipt = http.StatusAccepted, told.Replayed, told.Receipt
		if told.Refused != "" {
			answers[i].status = http.StatusUnprocessableEntity
		}
		return nil
	})
	return err
}

// await asks again and again until the count is zero. What was being worked on by a worker that
// was killed is delivered again meanwhile.
func (s *storm) await(ctx context.Context, what, count string, arg any) error {
	return demo.Await(ctx, what, func(ctx context.Context) (n int, err error) {
		if err = s.pool.QueryRow(ctx, count, arg).Scan(&n); err == nil && n > 0 && s.Faults {
			err = s.jobs.Rescue(ctx, 2*time.Second)
		}
		return n, err
	})
}

// settle waits until the bank's word about every refund is in the database.
func (s *storm) settle(ctx context.Context) error {
	const open = `SELECT count(*) FROM shop.refund WHERE merchant = ANY($1) AND state = 'requested'`
	if err := s.await(ctx, "the refunds", open, s.merchants()); err != nil {
		return err
	}
	const jobs = `SELECT count(*) FROM shop_queue.river_job WHERE args ->> 'merchant' = ANY($1) AND finalized_at IS NULL`
	return s.await(ctx, "the queue", jobs, s.merchants())
}

// payAgain enqueues every payout once more, as a broker does that has lost its memory.
func (s *storm) payAgain(ctx context.Context) error {
	rows, _ := s.pool.Query(ctx, `SELECT merchant, id FROM shop.refund WHERE merchant = ANY($1)`, s.merchants())
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[payment.Payout])
	if err != nil || len(all) == 0 {
		return err
	}
	params := make([]river.InsertManyParams, len(all))
	for i, p := range all {
		params[i].Args = p
	}
	_, err = s.queue.InsertManyFast(ctx, params)
	return err
}
