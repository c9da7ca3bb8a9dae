//go:build unix

package failover_test

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/dblock"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/statemachine"
)

const tables = `
CREATE TABLE canary (n int);
CREATE TABLE effect (name text NOT NULL, receipt text NOT NULL);
CREATE TABLE booked (name text NOT NULL, receipt text NOT NULL);
CREATE TABLE orders (id bigint PRIMARY KEY, state text NOT NULL);
CREATE TABLE guarded (seq bigint GENERATED ALWAYS AS IDENTITY, name text NOT NULL, token bigint NOT NULL)`

var (
	refund = idem.Op{Name: "refund.create", ReplayFor: idem.Forever, RememberFor: idem.Forever, Wait: time.Second}
	remit  = idem.Op{Name: "remittance.send", ReplayFor: idem.Forever, RememberFor: idem.Forever, Wait: time.Second}

	pay   = statemachine.NewEvent[string]("pay")
	order = statemachine.MustNew("order", statemachine.Initial("unpaid"), statemachine.Final("paid"), statemachine.From("unpaid").On(pay).To("paid"))
)

// What a client asks for, and is told.
const (
	opDo, opSteps, opFire, opLock = "do", "steps", "fire", "lock"

	workers = 4 // of each client
	locks   = 3 // keys that everybody wants
)

// entry is what a client was told. Times are by the clock of the machine, in nanoseconds.
type entry struct {
	Kind    string
	Name    string
	Receipt string
	Token   int64
	Asked   int64
	Told    int64
	Fault   string // an answer that there must not be
}

// client is a process of a service, with a pool and stores of its own.
type client struct {
	pool   *pgxpool.Pool
	keys   *idem.Store[pgx.Tx]
	orders *statemachine.Binding[int64, string, pgx.Tx]
	bank   string // a file
	say    func(entry)

	insert func(context.Context, pgx.Tx, string, string) error // the effect of a refund

	mu    sync.Mutex
	locks *dblock.Client[pgx.Tx]
}

func newClient(ctx context.Context, url, bank string, say func(entry)) (*client, error) {
	c := &client{bank: bank, say: say}
	c.insert = func(ctx context.Context, tx pgx.Tx, name, receipt string) error {
		_, err := tx.Exec(ctx, `INSERT INTO effect VALUES ($1, $2)`, name, receipt)
		return err
	}
	var err error
	if c.pool, err = pgxpool.New(ctx, url); err != nil {
		return nil, err
	}
	if c.keys, err = idem.New(pgxdriver.New(c.pool), &idem.Config{Lease: 2 * time.Second}); err != nil {
		return nil, err
	}
	c.orders, err = statemachine.Bind[int64](order, pgxdriver.New(c.pool), statemachine.Table{Name: "orders"})
	return c, err
}

func (c *client) close(ctx context.Context) {
	if c.locks != nil {
		_ = c.locks.Close(ctx) // what it could not give back has gone with its server
	}
	c.pool.Close()
}

// run asks for one thing after the other, as every other client does, until it is told to stop. What it begins, it ends.
func (c *client) run(ctx context.Context, stop <-chan struct{}) {
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := range 1 << 30 {
				select {
				case <-stop:
					return
				default:
					c.once(ctx, kindOf(i), i, w)
				}
			}
		})
	}
	wg.Wait()
}

func kindOf(i int) string { return [...]string{opDo, opSteps, opDo, opFire, opDo, opLock}[i%6] }

// once asks until it is answered.
func (c *client) once(ctx context.Context, kind string, i, worker int) {
	e := entry{Kind: kind, Name: strconv.Itoa(i)}
	for {
		e.Asked = time.Now().UnixNano()
		var err error
		switch kind {
		case opDo:
			e.Receipt, err = c.refund(ctx, e.Name)
		case opSteps:
			e.Receipt, err = c.remit(ctx, e.Name)
		case opFire:
			err = c.payOrder(ctx, int64(i))
		case opLock:
			e.Name = strconv.Itoa((i/6 + worker) % locks)
			err = c.guard(ctx, &e)
		}
		if err == nil {
			if kind != opLock { // which has said when
				e.Told = time.Now().UnixNano()
			}
			c.say(e)
			return
		}
		if !expected(err) {
			c.say(entry{Kind: kind, Name: e.Name, Fault: err.Error()})
			return
		}
		select {
		case <-ctx.Done():
			c.say(entry{Kind: kind, Name: e.Name, Fault: "no answer: " + err.Error()})
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// expected are the errors that a failover is to be met with: each says that asking again is safe.
func expected(err error) bool {
	for _, known := range []error{
		idem.ErrUnavailable, idem.ErrUnknownOutcome, idem.ErrInFlight, idem.ErrReadOnly, idem.ErrLeaseLost,
		statemachine.ErrUnavailable, statemachine.ErrUnknownOutcome, statemachine.ErrReadOnly, statemachine.ErrBusy,
		dblock.ErrUnavailable, dblock.ErrLost, dblock.ErrReadOnly,
		errGuarded,
	} {
		if errors.Is(err, known) {
			return true
		}
	}
	return false
}

func (c *client) refund(ctx context.Context, name string) (string, error) {
	res, err := idem.Do(ctx, c.keys, refund.Key("m", name), idem.Bytes([]byte(name)), func(ctx context.Context, tx pgx.Tx) (string, error) {
		receipt := rand.Text()
		if err := c.insert(ctx, tx, name, receipt); err != nil {
			return "", fmt.Errorf("%w: %w", idem.ErrUnavailable, err)
		}
		return receipt, nil
	})
	return res.Value, err
}

// remit pays at a bank that pays each reference once, and books it here.
func (c *client) remit(ctx context.Context, name string) (string, error) {
	res, err := idem.RunSteps(ctx, c.keys, remit.Key("m", name), idem.Bytes([]byte(name)), name, func(ctx context.Context, run *idem.Run[pgx.Tx], name string) (string, error) {
		if _, err := idem.Step(ctx, run, "pay", func(_ context.Context, reference string) (string, error) {
			return reference, appendLine(c.bank, name+" "+reference)
		}); err != nil {
			return "", err
		}
		return idem.StepTx(ctx, run, "book", func(ctx context.Context, tx pgx.Tx) (string, error) {
			receipt := rand.Text()
			_, err := tx.Exec(ctx, `INSERT INTO booked VALUES ($1, $2)`, name, receipt)
			if err != nil {
				err = fmt.Errorf("%w: %w", idem.ErrUnavailable, err)
			}
			return receipt, err
		})
	})
	return res.Value, err
}

func (c *client) payOrder(ctx context.Context, id int64) error {
	if _, err := c.orders.Create(ctx, id, "unpaid"); err != nil {
		return err
	}
	_, err := c.orders.Fire(ctx, id, pay)
	return err
}

// errGuarded is what went wrong in a transaction of our own, under a lock.
var errGuarded = errors.New("guarded transaction")

// guard takes a lock and writes its token in a fenced transaction.
func (c *client) guard(ctx context.Context, e *entry) error {
	client, err := c.lockClient(ctx)
	if err != nil {
		return err
	}
	wait, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	lock, err := client.Acquire(wait, dblock.Key{Space: "hot", ID: e.Name}, nil)
	if errors.Is(err, dblock.ErrNotAcquired) {
		return fmt.Errorf("%w: %w", errGuarded, err)
	}
	if err != nil {
		return err
	}
	e.Token, e.Told = int64(lock.Token()), time.Now().UnixNano()
	err = pgx.BeginFunc(ctx, c.pool, func(tx pgx.Tx) error {
		if err := lock.FenceTx(ctx, tx); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `INSERT INTO guarded (name, token) VALUES ($1, $2)`, e.Name, e.Token)
		return err
	})
	if err != nil {
		_ = lock.Release(ctx) // it may be lost
		c.say(*e)             // the grant was one
		return fmt.Errorf("%w: %w", errGuarded, err)
	}
	if err := lock.Release(ctx); err != nil && !errors.Is(err, dblock.ErrLost) {
		return err
	}
	return nil
}

// lockClient makes the client when there is a primary.
func (c *client) lockClient(ctx context.Context) (_ *dblock.Client[pgx.Tx], err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.locks == nil {
		c.locks, err = dblock.New(ctx, pgxdriver.New(c.pool), &dblock.Config{TTL: 5 * time.Second})
	}
	return c.locks, err
}

// appendLine writes to a file of many writers: what is in it stays, whatever becomes of the database.
func appendLine(name, line string) error {
	f, err := os.OpenFile(name, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(line + "\n")
	return errors.Join(err, f.Close())
}

// load is all clients together: one in this process, the others in processes of their own.
type load struct {
	mu      sync.Mutex
	entries []entry
	told    atomic.Int64

	stop    []func()
	stopped sync.Once
	ended   sync.WaitGroup
}

func (l *load) note(e entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.entries = append(l.entries, e)
	l.told.Add(1)
}

func startLoad(t *testing.T, url, bank string) *load {
	t.Helper()
	l := &load{}
	c, err := newClient(t.Context(), url, bank, l.note)
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	l.stop = append(l.stop, func() { close(stop) })
	l.ended.Go(func() {
		c.run(t.Context(), stop)
		c.close(t.Context())
	})
	const processes = 2
	for range processes {
		l.fork(t, url, bank)
	}
	return l
}

// fork starts a client as a process.
func (l *load) fork(t *testing.T, url, bank string) {
	t.Helper()
	child := exec.CommandContext(t.Context(), os.Args[0])
	child.Env = append(os.Environ(), "FAILOVER_CLIENT="+url, "FAILOVER_BANK="+bank)
	child.Stderr = os.Stderr
	in, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	l.stop = append(l.stop, func() { _ = in.Close() })
	l.ended.Go(func() {
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			var e entry
			if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
				t.Errorf("a client said %q: %v", lines.Text(), err)
			}
			l.note(e)
		}
		if err := child.Wait(); err != nil {
			t.Errorf("a client ended: %v", err)
		}
	})
}

// playClient is the life of such a process, which ends when it has no one to talk to.
func playClient(url string) {
	ctx := context.Background()
	var mu sync.Mutex
	out := json.NewEncoder(os.Stdout)
	c, err := newClient(ctx, url, os.Getenv("FAILOVER_BANK"), func(e entry) {
		mu.Lock()
		defer mu.Unlock()
		if err := out.Encode(e); err != nil {
			panic(err)
		}
	})
	if err != nil {
		panic(err)
	}
	stop := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(stop)
	}()
	c.run(ctx, stop)
	c.close(ctx)
	os.Exit(0)
}

// end lets everybody end what he has begun. It may be called again.
func (l *load) end() []entry {
	l.stopped.Do(func() {
		for _, stop := range l.stop {
			stop()
		}
	})
	l.ended.Wait()
	return l.entries
}
