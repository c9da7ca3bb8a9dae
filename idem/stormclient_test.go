//go:build unix

package idem_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/idem"
)

const (
	stormClients  = 4
	stormCallers  = 8 // of each client
	stormRepeats  = 5 // requests of each key
	stormWindow   = 40
	stormInSteps  = 20 // one key in so many is executed in steps
	stormLease    = time.Second
	stormFreeze   = 4 * time.Second // longer than the lease, and than MaxHandler and its grace
	stormPatience = 3 * time.Minute // without any progress
)

// stormTables has the effects, and a bank that is outside of every transaction of ours: it pays as often as it is asked, but for references that it has
// declared void when somebody enquired.
const stormTables = `
CREATE TABLE effect (serial bigint GENERATED ALWAYS AS IDENTITY, key int NOT NULL);
CREATE TABLE bank (key int NOT NULL, reference text NOT NULL);
CREATE TABLE void (reference text NOT NULL);
CREATE FUNCTION pay(k int, ref text) RETURNS int LANGUAGE plpgsql AS $$ BEGIN
	PERFORM pg_advisory_xact_lock(hashtextextended(ref, 0));
	IF EXISTS (SELECT FROM void WHERE reference = ref) THEN RAISE 'the reference is void'; END IF;
	INSERT INTO bank VALUES (k, ref);
	RETURN k;
END $$;
CREATE FUNCTION enquire(ref text) RETURNS int LANGUAGE plpgsql AS $$ DECLARE k int; BEGIN
	PERFORM pg_advisory_xact_lock(hashtextextended(ref, 0));
	SELECT max(key) INTO k FROM bank WHERE reference = ref;
	IF k IS NULL THEN INSERT INTO void VALUES (ref); END IF;
	RETURN k;
END $$;`

// stormRole is what a client process is told: to send its share of the requests until each is answered, and to write each answer down.
type stormRole struct {
	URL, Bank, File string
	Client, Total   int
	Seed            uint64
}

// gust is the order of all requests, as the keys that they are for. Repeats of a key are near to each other, so that they meet.
func gust(seed uint64, total int) []int {
	random := rand.New(rand.NewPCG(seed, 1))
	order := make([]int, 0, total)
	for first := 0; len(order) < total; first += stormWindow {
		from := len(order)
		for k := first; k < first+stormWindow && len(order) < total; k++ {
			for range stormRepeats {
				order = append(order, k)
			}
		}
		random.Shuffle(len(order)-from, func(i, j int) { order[from+i], order[from+j] = order[from+j], order[from+i] })
	}
	return order
}

// stormAnswer is a line of a client's file: the answer to a request.
type stormAnswer struct {
	Request int
	Serial  int64
	Error   string `json:",omitempty"` // what must not happen
}

// stormAnswers reads a client's file, as far as it is whole.
func stormAnswers(file string) (all []stormAnswer, size int64, err error) {
	text, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil, 0, nil
	}
	text = text[:bytes.LastIndexByte(text, '\n')+1] // a kill may tear the last line
	for line := range bytes.Lines(text) {
		var a stormAnswer
		if err := json.Unmarshal(line, &a); err != nil {
			return nil, 0, err
		}
		all = append(all, a)
	}
	return all, int64(len(text)), err
}

// stormClient plays a client. One that was killed is started again, and goes on with what it has no answer to.
func stormClient(text string) {
	var r stormRole
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		panic(err)
	}
	before, size, err := stormAnswers(r.File)
	if err != nil {
		panic(err)
	}
	answered := map[int]bool{}
	for _, a := range before {
		answered[a.Request] = true
	}
	out, err := os.OpenFile(r.File, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err == nil {
		err = out.Truncate(size)
	}
	if err != nil {
		panic(err)
	}
	c := newStormCaller(r, out)
	requests := make(chan int)
	var callers sync.WaitGroup
	order := gust(r.Seed, r.Total)
	for range stormCallers {
		callers.Go(func() {
			for i := range requests {
				c.insist(i, order[i])
			}
		})
	}
	for i := r.Client; i < r.Total; i += stormClients {
		if !answered[i] {
			requests <- i
		}
	}
	close(requests)
	callers.Wait()
	os.Exit(0)
}

type stormCaller struct {
	keys *idem.Store[pgx.Tx]
	bank *pgxpool.Pool
	mu   sync.Mutex
	out  *os.File
}

func newStormCaller(r stormRole, out *os.File) *stormCaller {
	open := func(url string) *pgxpool.Pool {
		cfg, err := pgxpool.ParseConfig(url)
		if err != nil {
			panic(err)
		}
		cfg.MaxConns = stormCallers
		cfg.ConnConfig.RuntimeParams["application_name"] = "storm"
		pool, err := pgxpool.NewWithConfig(context.Background(), cfg)
		if err != nil {
			panic(err)
		}
		return pool
	}
	keys, err := idem.New(pgxdriver.New(open(r.URL)), &idem.Config{Lease: stormLease})
	if err != nil {
		panic(err)
	}
	return &stormCaller{keys: keys, bank: open(r.Bank), out: out}
}

// say writes a line by one write, so that a kill does not tear those before it.
func (c *stormCaller) say(a stormAnswer) {
	text, err := json.Marshal(a)
	if err != nil {
		panic(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, err := c.out.Write(append(text, '\n')); err != nil {
		panic(err)
	}
}

// insist asks until there is an answer.
func (c *stormCaller) insist(request, key int) {
	for {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		serial, err := c.ask(ctx, key)
		cancel()
		if err == nil {
			c.say(stormAnswer{Request: request, Serial: serial})
			return
		}
		for _, never := range []error{
			idem.ErrInvalidKey, idem.ErrRefused, idem.ErrNested, idem.ErrReentrant, idem.ErrMismatch, idem.ErrExpired, idem.ErrTxEnded,
			idem.ErrStepsChanged, idem.ErrDead, idem.ErrReadOnly, idem.ErrSchema,
		} {
			if errors.Is(err, never) {
				c.say(stormAnswer{Request: request, Error: err.Error()})
			}
		}
		pause, done := context.WithTimeout(context.Background(), time.Duration(5+rand.IntN(20))*time.Millisecond)
		<-pause.Done()
		done()
	}
}

var (
	stormDo    = idem.Op{Name: "storm.do", Wait: 2 * time.Second, MaxHandler: 2 * time.Second, ReplayFor: idem.Forever, RememberFor: idem.Forever}
	stormSteps = idem.Op{Name: "storm.steps", Wait: 2 * time.Second, MaxHandler: 2 * time.Second, RetryAfter: time.Millisecond, ReplayFor: idem.Forever, RememberFor: idem.Forever}
)

func (c *stormCaller) ask(ctx context.Context, key int) (int64, error) {
	id, body := strconv.Itoa(key), idem.Bytes(strconv.AppendInt(nil, int64(key), 10))
	write := func(ctx context.Context, tx pgx.Tx) (serial int64, err error) {
		err = tx.QueryRow(ctx, `INSERT INTO effect (key) VALUES ($1) RETURNING serial`, key).Scan(&serial)
		return serial, err
	}
	if key%stormInSteps != 0 {
		res, err := idem.Do(ctx, c.keys, stormDo.Key("m1", id), body, write)
		return res.Value, err
	}
	pay := func(ctx context.Context, reference string) (n int, err error) {
		err = c.bank.QueryRow(ctx, `SELECT pay($1, $2)`, key, reference).Scan(&n)
		return n, err
	}
	enquire := func(ctx context.Context, reference string) (int, idem.Outcome, error) {
		var n *int
		if err := c.bank.QueryRow(ctx, `SELECT enquire($1)`, reference).Scan(&n); err != nil {
			return 0, idem.Unsure, err
		}
		if n == nil {
			return 0, idem.NeverHappened, nil
		}
		return *n, idem.Happened, nil
	}
	res, err := idem.RunSteps(ctx, c.keys, stormSteps.Key("m1", id), body, key, func(ctx context.Context, run *idem.Run[pgx.Tx], _ int) (int64, error) {
		if _, err := idem.Step(ctx, run, "pay", pay, idem.AtMostOnce(enquire)); err != nil {
			return 0, err
		}
		return idem.StepTx(ctx, run, "book", write)
	})
	return res.Value, err
}
