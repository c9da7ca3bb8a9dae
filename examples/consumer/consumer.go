// Package consumer has the effect of a message once, however often a queue delivers it. Queues deliver at least once: a
// worker dies after it has committed and before it has acknowledged, a producer publishes twice, a broker forgets.
//
// There are two shapes, and which one is right depends on where the acknowledgement goes:
//
//   - It goes elsewhere, or into another transaction (a broker; [Poller]): [Once], which is idem.Do. The effect and the
//     message's id are committed, then the message is acknowledged. If that is lost, the message comes
//     again, its id is known, and it is acknowledged then.
//   - It can be part of the transaction ([Worker], with River's JobCompleteTx): SeenTx, the effect and the
//     acknowledgement are one commit. Only what the queue delivers twice on its own accord comes again.
package consumer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgonce/pgonce/idem"
)

// Credit is the operation. Its keys are remembered for as long as a message may come again: a queue's retention, its dead
// letters that somebody requeues, and some more.
var Credit = idem.Op{Name: "credit", RememberFor: 90 * 24 * time.Hour, Wait: time.Second}

// Message is a message as a queue delivers it.
type Message struct {
	Source  string // who numbers the messages: the topic, the producer
	ID      string // given by the producer, the same at each delivery
	Attempt int    // 1 for the first delivery that this queue knows of
	Body    []byte
}

// key is the message's. A second delivery is probably a repeat, so the record is looked for before anything else.
func (m Message) key() idem.Key {
	key := Credit.Key(m.Source, m.ID)
	if m.Attempt > 1 {
		key = key.LikelyReplay()
	}
	return key
}

// Handler has the effect of a message, in the transaction and nowhere else.
type Handler func(ctx context.Context, tx pgx.Tx, m Message) error

// Once makes a handler that can be called for every delivery. When it returns nil, the message has had its effect, now or
// before, for good: acknowledge it. [Permanent] says which errors will not go away by themselves.
func Once(keys *idem.Store[pgx.Tx], h Handler) func(ctx context.Context, m Message) error {
	return func(ctx context.Context, m Message) error {
		_, err := idem.Do(ctx, keys, m.key(), idem.Bytes(m.Body), func(ctx context.Context, tx pgx.Tx) (struct{}, error) {
			return struct{}{}, h(ctx, tx, m)
		})
		if errors.Is(err, idem.ErrExpired) {
			return nil // done long ago; of a message nobody needs the result
		}
		return err
	}
}

// Permanent says that a message will fail at each delivery: its handler has refused it for good (idem.Final), its id
// cannot be one, or belongs to another message.
func Permanent(err error) bool {
	for _, permanent := range []error{idem.ErrRefused, idem.ErrMismatch, idem.ErrInvalidKey} {
		if errors.Is(err, permanent) {
			return true
		}
	}
	_, final := errors.AsType[*badMessageError](err)
	return final
}

type badMessageError struct{ reason string }

func (e *badMessageError) Error() string { return "bad message: " + e.reason }

// AddCredit is a [Handler]: it adds to an account what the message says.
func AddCredit(ctx context.Context, tx pgx.Tx, m Message) error {
	var in struct {
		Account string `json:"account"`
		Cents   int64  `json:"cents"`
	}
	if err := json.Unmarshal(m.Body, &in); err != nil || in.Account == "" || in.Cents <= 0 {
		return idem.Final(&badMessageError{fmt.Sprintf("want an account and cents (%v)", err)})
	}
	_, err := tx.Exec(ctx, `INSERT INTO credit (account, cents) VALUES ($1, $2)`, in.Account, in.Cents)
	return err
}
