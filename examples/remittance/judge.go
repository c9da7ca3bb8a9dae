package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/examples/internal/demo"
	"github.com/pgonce/pgonce/examples/remittance/bank"
	"github.com/pgonce/pgonce/examples/remittance/remit"
)

// entry is a remittance as the database has it.
type entry struct {
	ID          string
	Flag        remit.Flag
	Send        int
	AmountCents int64
	Serial      *string
}

// delivery is a message and what became of it.
type delivery struct {
	State   string
	Message remit.Message
	Output  []byte // JSON of an Answer
}

// books is what the bank, the queue and the database say after a storm.
type books struct {
	bank        []bank.Entry
	remittances []entry
	deliveries  []delivery
	effects     int      // distinct keys that were committed
	breaks      []string // where histories and rows do not fit together
}

func readBooks(ctx context.Context, s *storm) (b books, err error) {
	b.bank = s.bank.Entries()
	rows, _ := s.pool.Query(ctx, `SELECT id, flag, send, amount_cents, serial FROM remit.remittance WHERE id LIKE $1 ORDER BY id`, s.jobs.Arg)
	if b.remittances, err = pgx.CollectRows(rows, pgx.RowToStructByPos[entry]); err != nil {
		return b, err
	}
	rows, _ = s.pool.Query(ctx, `SELECT state::text, args, metadata -> 'output' FROM remit_queue.river_job WHERE args ->> 'remittance' LIKE $1`, s.jobs.Arg)
	if b.deliveries, err = pgx.CollectRows(rows, pgx.RowToStructByPos[delivery]); err != nil {
		return b, err
	}
	err = s.pool.QueryRow(ctx, `SELECT count(*) FROM pgonce.idem_record WHERE op = 'remittance.send' AND id LIKE $1`, s.jobs.Arg).Scan(&b.effects)
	if err != nil {
		return b, err
	}
	for broken, err := range s.service.Breaks(ctx) {
		if err != nil {
			return b, err
		}
		b.breaks = append(b.breaks, broken.String())
	}
	return b, nil
}

// report is the verdict over a storm.
type report struct {
	demo.Verdict
	storm *storm
	took  time.Duration

	paid, back       int64 // cents
	doubles          int   // payments of a sending after its first
	payments         int
	flags            map[remit.Flag]int
	unpaid, stranded int // the original's: never paid; paid, and the flag does not say so
}

// judge holds the bank's ledger against the database, and what the messages were told against both.
func (s *storm) judge(b books) *report {
	r := &report{Verdict: demo.Verdict{Name: "remittance", Effects: b.effects}, storm: s, flags: map[remit.Flag]int{}}
	r.Wrongs = append(r.Wrongs, b.breaks...)
	known := map[string]entry{}
	for _, e := range b.remittances {
		known[e.ID] = e
		r.flags[e.Flag]++
	}
	if len(known) != s.messages {
		r.Wrong("%d remittances are in the database, want %d", len(known), s.messages)
	}
	s.judgeBank(r, b, known)
	s.judgeAnswers(r, b, known)
	return r
}

// judgeBank: one payment at most for each sending, never more out than the amount, and the flag and the serial number say what is so.
func (s *storm) judgeBank(r *report, b books, known map[string]entry) {
	out, sent, last := map[string]int64{}, map[string]int{}, map[string]string{}
	for _, e := range b.bank {
		var send int
		id := e.Purpose[:len(e.Purpose)-2] // sendings have one digit here
		_, _ = fmt.Sscanf(e.Purpose[len(id):], "/%d", &send)
		if e.Back {
			out[id] -= e.AmountCents
			r.back += e.AmountCents
			continue
		}
		r.payments++
		r.paid += e.AmountCents
		sent[e.Purpose]++
		out[id] += e.AmountCents
		last[id] = e.Serial
		if sent[e.Purpose] > 1 {
			r.doubles++
			r.Wrong("%s was paid %d times", e.Purpose, sent[e.Purpose])
		}
		if want := known[id].AmountCents; out[id] > want {
			r.Wrong("%s has %d cents out, net of returns, and is about %d", id, out[id], want)
		}
	}
	for n := range s.messages {
		s.judgeFlag(r, n, known[s.key(n)], out[s.key(n)], last[s.key(n)])
	}
}

// judgeFlag: the remittance is where it should be, and the bank agrees.
func (s *storm) judgeFlag(r *report, n int, e entry, out int64, serial string) {
	want := remit.Paid
	switch {
	case stopped(n) && (e.Flag == remit.Cancel || e.Flag == remit.Illegal):
		want = e.Flag // they came in time
	case kind(n) == bank.Closed && !renewed(n):
		want = remit.Failed
	case kind(n) == bank.Bouncing && !renewed(n):
		want = remit.Bounced
	}
	if e.Flag != want {
		r.Wrong("%s is at %d (%s), want %d (%s)", s.key(n), e.Flag, e.Flag, want, want)
	}
	if expected := map[bool]int64{true: e.AmountCents}[e.Flag == remit.Paid]; out != expected {
		r.Wrong("%s is at %d (%s), and %d cents are out", s.key(n), e.Flag, e.Flag, out)
	}
	if serial != "" && (e.Serial == nil || *e.Serial != serial) {
		r.Wrong("%s was last paid under %s, the database has %v", s.key(n), serial, e.Serial)
	}
}

// judgeAnswers: every message was answered, every delivery of one alike, one at most as if executed anew; another amount was refused.
func (s *storm) judgeAnswers(r *report, b books, known map[string]entry) {
	first, anew, successes := map[string]remit.Outcome{}, map[string]int{}, 0
	for _, d := range b.deliveries {
		var a remit.Answer
		key := fmt.Sprintf("%s/%d", d.Message.Remittance, d.Message.Send)
		forged := d.Message.AmountCents != known[d.Message.Remittance].AmountCents
		switch err := json.Unmarshal(d.Output, &a); {
		case err == nil && forged && d.State == "cancelled" && a.Refused != "":
			r.Conflicts++
		case err == nil && !forged && d.State == "completed" && a.Refused == "":
			successes++
			if was, seen := first[key]; seen && was != a.Outcome {
				r.Wrong("%s was answered as %+v and as %+v", key, was, a.Outcome)
			}
			first[key] = a.Outcome
			if !a.Replayed {
				anew[key]++
			}
		default:
			r.Failed++
			r.Wrong("a message for %s ended as %s: %.200s", key, d.State, d.Output)
		}
	}
	for key, n := range anew {
		if n > 1 {
			r.Wrong("%s was answered %d times as if executed anew", key, n)
		}
	}
	r.Replays = successes - r.Effects
	if len(first) != r.Effects {
		r.Wrong("%d sendings were answered, %d are recorded", len(first), r.Effects)
	}
}
