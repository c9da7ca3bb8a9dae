package main

import (
	"bytes"
	"context"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/internal/pgtest"
)

// TestMain lets the test binary play the service.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "serve" {
		main()
		return
	}
	os.Exit(m.Run())
}

func prepare(t *testing.T) (*pgtest.DB, *pgxpool.Pool) {
	t.Helper()
	db := pgtest.New(t)
	pool := db.Pool(t)
	if err := migrate(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	return db, pool
}

func serviceOn(db *pgtest.DB) *process {
	return &process{command: []string{os.Args[0], "serve"}, env: []string{"DATABASE_URL=" + db.URL}}
}

// The storm, smaller, with the same invariant: money leaves once for each refund, and nothing
// that was acknowledged is missing.
func TestStorm(t *testing.T) {
	t.Parallel()
	db, pool := prepare(t)
	opt := options{refunds: 200, duplicates: 5, workers: 16, faults: true, seed: rand.Uint64N(1_000_000)}
	t.Logf("seed %d", opt.seed)
	var out bytes.Buffer
	if err := storming(t.Context(), opt, pool, serviceOn(db), &out); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	if want := "refund requests=1002 effects=200 replays=800 conflicts=2 failed=0 verdict=ok\n"; !strings.HasSuffix(out.String(), want) {
		t.Errorf("got\n%s\nwant it to end with %s", &out, want)
	}
	if n := strings.Count(out.String(), "SIGKILL, back"); n != 2 {
		t.Errorf("the service was killed %d times, want 2", n)
	}
}

// The verdict has to be able to fail: each way to be wrong is told.
func TestJudgeFindsWhatIsWrong(t *testing.T) {
	t.Parallel()
	s := &storm{refunds: 2, duplicates: 2}
	p0, p1 := payout{1, s.purchase(0), s.key(0), amountOf(0)}, payout{2, s.purchase(1), s.key(1), amountOf(1)}
	told := func(p payout, replayed bool) answer {
		return answer{
			order: order{key: p.Request, amount: p.AmountCents}, status: http.StatusCreated, replayed: replayed,
			receipt: receipt{p.ID, p.Purchase, p.AmountCents},
		}
	}
	forged := answer{order: order{key: s.key(0), forgery: true}, status: http.StatusUnprocessableEntity}
	paidForged := told(p0, true)
	paidForged.forgery = true
	right := []answer{told(p0, false), told(p0, true), told(p1, true), told(p1, true), forged}
	sum := p0.AmountCents + p1.AmountCents
	rightBooks := books{payouts: []payout{p0, p1}, refundedCents: sum, records: 2}

	again := p0
	again.ID = 3
	for name, tc := range map[string]struct {
		answers []answer
		books   books
		says    string // "" is ok
	}{
		"right":                     {right, rightBooks, ""},
		"paid twice":                {right, books{[]payout{p0, p1, again}, sum + p0.AmountCents, 2}, "paid twice"},
		"acknowledged, not there":   {right, books{[]payout{p1}, p1.AmountCents, 2}, "was acknowledged as"},
		"another receipt":           {append(right[1:], told(again, true)), rightBooks, "was acknowledged as"},
		"executed twice, they said": {append(right, told(p0, false)), rightBooks, "as if executed anew"},
		"no answer":                 {append(right, answer{order: order{key: s.key(1)}}), rightBooks, "ended with status 0"},
		"forgery went through":      {append(right, paidForged), rightBooks, "ended with status 201"},
		"never asked":               {right[:2], books{[]payout{p0}, p0.AmountCents, 1}, "2 refunds were asked for"},
		"off the books":             {right, books{[]payout{p0, p1}, sum + 1, 2}, "cents should have left"},
		"no record":                 {right, books{[]payout{p0, p1}, sum, 1}, "1 are recorded"},
	} {
		r := s.judge(tc.answers, tc.books)
		said := strings.Join(r.faults, "\n")
		if (r.verdict() == "ok") != (tc.says == "") || !strings.Contains(said, tc.says) {
			t.Errorf("%s: verdict %s: %s", name, r.verdict(), said)
		}
	}
}

func TestServiceAnswers(t *testing.T) {
	t.Parallel()
	db, pool := prepare(t)
	s := &storm{refunds: 1, duplicates: 1, merchant: "m1"}
	if err := stock(t.Context(), pool, s); err != nil {
		t.Fatal(err)
	}
	service := serviceOn(db)
	if err := service.start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(service.stop)
	for _, tc := range []struct {
		merchant, key, body string
		status              int
		replayed            bool
	}{
		{"m1", "k1", `{"purchase": "p-00", "amount_cents": 100}`, http.StatusCreated, false},
		{"m1", "k1", `{"purchase": "p-00", "amount_cents": 100}`, http.StatusCreated, true},
		{"m1", "k1", `{"purchase": "p-00", "amount_cents": 101}`, http.StatusUnprocessableEntity, false},
		{"m1", "k2", `{"purchase": "p-00", "amount_cents": 101}`, http.StatusUnprocessableEntity, false}, // only 200 were paid
		{"m1", "k3", `{"purchase": "p-99", "amount_cents": 1}`, http.StatusUnprocessableEntity, false},
		{"m1", "", `{"purchase": "p-01", "amount_cents": 1}`, http.StatusBadRequest, false},
		{"", "k4", `{"purchase": "p-01", "amount_cents": 1}`, http.StatusBadRequest, false},
		{"m1", "k5", `{"purchase": "p-01", "amount_cents": -1}`, http.StatusBadRequest, false},
		{"m1", "k6", `nonsense`, http.StatusBadRequest, false},
		{"m1", "k7", strings.Repeat("x", maxBody+1), http.StatusRequestEntityTooLarge, false},
	} {
		status, replayed := post(t, service, tc.merchant, tc.key, tc.body)
		if status != tc.status || replayed != tc.replayed {
			t.Errorf("%s %s %.60s: got %d, replayed %t; want %d, %t", tc.merchant, tc.key, tc.body, status, replayed, tc.status, tc.replayed)
		}
	}
	if n := db.Int(t, `SELECT count(*) FROM shop.payout`); n != 1 {
		t.Errorf("%d payouts, want 1", n)
	}
}

func post(t *testing.T, service *process, merchant, key, body string) (status int, replayed bool) {
	t.Helper()
	url, err := service.address(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+"/refunds", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Merchant", merchant)
	req.Header.Set("Idempotency-Key", key)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	return res.StatusCode, res.Header.Get("Idempotent-Replayed") == "true"
}

func TestCommandLine(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"--refunds", "0"}, {"--workers=-1"}, {"--duplicates", "x"}, {"extra"}, {"--nope"}} {
		if err := run(context.Background(), args, &bytes.Buffer{}); err == nil {
			t.Errorf("%v was accepted", args)
		}
	}
}
