package payment

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"
)

// Patience is how long the bank is waited for.
const Patience = 400 * time.Millisecond

// Transfer is what the bank is asked for.
type Transfer struct {
	Reference   string `json:"reference"` // the same reference is the same payment
	Account     string `json:"account"`
	AmountCents int64  `json:"amount_cents"`
	Purpose     string `json:"purpose"` // what is printed on the statement
}

// Bank is a client of the bank.
type Bank struct {
	url    string
	client *http.Client
}

// NewBank makes a client of the bank at url that waits for each answer for so long.
func NewBank(url string, patience time.Duration) *Bank {
	return &Bank{url: url, client: &http.Client{Timeout: patience, Transport: &http.Transport{MaxIdleConnsPerHost: 32}}}
}

// Decision is the bank's word: paid under a serial number, or refused for a reason.
type Decision struct {
	Paid           bool
	Serial, Reason string
}

// Reference names a payment at the bank. It is derived from the key of the refund and from
// nothing else, so it is the same at every try, in every process, and after a restore of the database; 35
// characters are what banks carry through end to end. The lengths keep two pairs from
// running together.
func Reference(merchant, number string) string {
	var buf []byte
	for _, part := range []string{merchant, number} {
		buf = binary.BigEndian.AppendUint64(buf, uint64(len(part)))
		buf = append(buf, part...)
	}
	sum := sha256.Sum256(buf)
	return "R" + hex.EncodeToString(sum[:17])
}

// Pay asks the bank to pay. An error means that nobody knows whether it did: ask again under the same
// reference.
func (b *Bank) Pay(ctx context.Context, t Transfer) (Decision, error) {
	body, err := json.Marshal(t)
	if err != nil {
		return Decision{}, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, b.url+"/payments", bytes.NewReader(body))
	if err != nil {
		return Decision{}, err
	}
	res, err := b.client.Do(req)
	if err != nil {
		return Decision{}, fmt.Errorf("bank: %w", err)
	}
	defer func() { _ = res.Body.Close() }()
	data, err := io.ReadAll(io.LimitReader(res.Body, maxBody))
	if err != nil {
		return Decision{}, fmt.Errorf("bank: %w", err)
	}
	return read(t, res.StatusCode, data)
}

// read takes the bank at its word only about the transfer that was asked for. A bank that answers twice can
// have its second answer read as that to the next request on the connection.
func read(t Transfer, status int, data []byte) (Decision, error) {
	var answer struct{ Reference, Serial, Reason string }
	if status != http.StatusOK && status != http.StatusUnprocessableEntity {
		return Decision{}, fmt.Errorf("bank: status %d: %.200s", status, data)
	}
	switch err := json.Unmarshal(data, &answer); {
	case err != nil:
		return Decision{}, fmt.Errorf("bank: %w: %.200q", err, data)
	case answer.Reference != t.Reference:
		return Decision{}, fmt.Errorf("bank: asked about %s, answered about %.50q", t.Reference, answer.Reference)
	case status == http.StatusOK && answer.Serial != "":
		return Decision{Paid: true, Serial: answer.Serial}, nil
	case status == http.StatusUnprocessableEntity && answer.Reason != "":
		return Decision{Reason: answer.Reason}, nil
	}
	return Decision{}, fmt.Errorf("bank: decided, but what: %.200q", data)
}
