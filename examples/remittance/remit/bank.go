package remit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// Transfer is what the bank is asked for.
type Transfer struct {
	Reference   string `json:"reference"`
	Account     string `json:"account"`
	AmountCents int64  `json:"amount_cents"`
	Purpose     string `json:"purpose"` // what is printed on the statement
}

// The bank's codes.
const (
	codeAtIt    = 1  // it has the order, and has not decided
	codePaid    = 4  // under a serial number
	codeRefused = 8  // for a reason
	codeBlocked = 9  // it refuses the reference, after an enquiry about it
	codeUnknown = 12 // enquiry only: it does not know the reference, and refuses it from now on
)

// Word is what the bank says about a reference.
type Word struct {
	Reference string `json:"reference"`
	Code      int    `json:"code"`
	Serial    string `json:"serial,omitempty"`
	Reason    string `json:"reason,omitempty"`
}

// decided says whether the word settles the matter, and can be read.
func (w Word) decided() bool {
	return w.Code == codePaid && w.Serial != "" || w.Code == codeRefused && w.Reason != ""
}

// Return is a payment that came back.
type Return struct {
	Serial string `json:"serial"`
	Reason string `json:"reason"`
}

// errNoWord means that nobody knows what the bank has done.
var errNoWord = errors.New("no word from the bank")

// Bank is a client of the bank. It never repeats a call by itself: this bank pays as often as it is called.
type Bank struct {
	url    string
	client *http.Client
}

// NewBank makes a client of the bank at url that waits for each answer for so long.
func NewBank(url string, patience time.Duration) *Bank {
	return &Bank{url: url, client: &http.Client{Timeout: patience, Transport: &http.Transport{MaxIdleConnsPerHost: 32}}}
}

// Pay asks the bank to pay. An error means that nobody knows whether it did.
func (b *Bank) Pay(ctx context.Context, t Transfer) (Word, error) {
	return b.ask(ctx, t.Reference, "/payments", t)
}

// Enquire asks what became of a reference. If the bank does not know it, it says so and refuses it from then on.
func (b *Bank) Enquire(ctx context.Context, reference string) (Word, error) {
	return b.ask(ctx, reference, "/enquiries", Word{Reference: reference})
}

// ask takes the bank at its word only about the reference that was asked for. A bank that answers twice can
// have its second answer read as that to the next request on the connection.
func (b *Bank) ask(ctx context.Context, reference, path string, question any) (Word, error) {
	var word Word
	if err := b.call(ctx, http.MethodPost, path, question, &word); err != nil {
		return Word{}, err
	}
	if word.Reference != reference {
		return Word{}, fmt.Errorf("%w: asked about %s, answered about %.50q", errNoWord, reference, word.Reference)
	}
	return word, nil
}

// Returns lists what has come back, all of it, each time.
func (b *Bank) Returns(ctx context.Context) (all []Return, err error) {
	err = b.call(ctx, http.MethodGet, "/returns", nil, &all)
	return all, err
}

func (b *Bank) call(ctx context.Context, method, path string, question, answer any) error {
	body, err := json.Marshal(question)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, method, b.url+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	res, err := b.client.Do(req)
	if err != nil {
		return fmt.Errorf("%w: %w", errNoWord, err)
	}
	defer func() { _ = res.Body.Close() }()
	data, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return fmt.Errorf("%w: %w", errNoWord, err)
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%w: status %d: %.200s", errNoWord, res.StatusCode, data)
	}
	if err := json.Unmarshal(data, answer); err != nil {
		return fmt.Errorf("%w: %w: %.200q", errNoWord, err, data)
	}
	return nil
}
