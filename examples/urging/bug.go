package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/pgonce/pgonce/examples/internal/demo"
	"github.com/pgonce/pgonce/examples/urging/original"
	"github.com/pgonce/pgonce/examples/urging/urges"
)

// wrong starts the instances of the original. Their clocks are not the same: of the second and third they are
// six and twelve seconds ahead, at the scale of the original's lock.
func wrong(ctx context.Context, s *storm) error {
	for n := range instances {
		pool, err := s.Connect(ctx)
		if err != nil {
			return err
		}
		mux := http.NewServeMux()
		skew := time.Duration(n) * 60 * time.Millisecond
		mux.Handle("POST /tickets/{ticket}/urges", urges.UrgeHTTP(original.New(pool, skew), demo.Logger(s.Verbose)))
		if err := s.Listen(mux); err != nil {
			return err
		}
	}
	return nil
}

// doubles are what the original has made more than once.
type doubles struct{ urges, subRecords int }

// runOriginal sends the same gusts to the original.
func runOriginal(ctx context.Context, opt options, g *demo.Ground, out io.Writer) (d doubles, err error) {
	s, err := prepare(ctx, opt, g, out, wrong)
	if err != nil {
		return d, err
	}
	defer s.Close()
	_, err = s.blowAll(ctx, func(ctx context.Context) error {
		return demo.Age(ctx, g.Pool, urges.Window, demo.Aged{Schema: "urging_original", Where: `ticket = ANY($2)`, Arg: s.tickets})
	})
	if err != nil {
		return d, err
	}
	// A window is what lies between two ageings, which took seconds: by the age of its urges in quarters of an hour.
	const count = `
WITH w AS (SELECT id, ticket, floor(extract(epoch FROM now() - opened_at) / 900) AS nth FROM urging_original.urge WHERE ticket = ANY($1))
SELECT (SELECT coalesce(sum(n - 1), 0) FROM (SELECT count(*) n FROM w GROUP BY ticket, nth) d),
       (SELECT coalesce(sum(n - 1), 0) FROM (
           SELECT count(*) n FROM w JOIN urging_original.urger r ON r.urge = w.id GROUP BY ticket, nth, user_id) d)`
	return d, g.Pool.QueryRow(ctx, count, s.tickets).Scan(&d.urges, &d.subRecords)
}

// showTheBug runs the original and the right way under the same storm, and counts what each has made twice.
func showTheBug(ctx context.Context, opt options, g *demo.Ground, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	fmt.Fprintln(out, "== the original: a stamp in Redis, a spin, check and insert")
	d, err := runOriginal(ctx, opt, g, out)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "The original made %d double urges, and %d double sub-records within one window.\n\n",
		d.urges, d.subRecords)
	fmt.Fprintln(out, "== dblock, the database's clock, constraints")
	right := storming(ctx, opt, g, out)
	if d.urges+d.subRecords == 0 {
		right = errors.Join(right, errors.New("the original did nothing twice in this storm, so it shows nothing; try more users"))
	}
	return right
}
