package refunds

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"
)

// Transfer is what the refund service is asked for.
type Transfer struct {
	Reference   string `json:"reference"` // the same reference is the same payment
	Account     string `json:"account"`
	AmountCents int64  `json:"amount_cents"`
	Purpose     string `json:"purpose"` // for people
}

// Decision is its word: paid under a serial number, or refused for a reason.
type Decision struct {
	Paid           bool
	Serial, Reason string
}

// Bank is a client of the refund service.
type Bank struct {
	url    string
	client *http.Client
}

// NewBank makes a client of the service at url that waits for each answer for so long.
func NewBank(url string, patience time.Duration) *Bank {
	return &Bank{url: url, client: &http.Client{Timeout: patience, Transport: &http.Transport{MaxIdleConnsPerHost: 16}}}
}

// Pay asks the service to pay. An error means that nobody knows whether it did: ask again under the same
// reference.
func (b *Bank) Pay(ctx context.Context, t Transfer) (d Decision, err error) {
	body, err := json.Marshal(t)
	if err != nil {
		return d, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, b.url+"/refunds", bytes.NewReader(body))
	if err != nil {
		return d, err
	}
	res, err := b.client.Do(req)
	if err != nil {
		return d, fmt.Errorf("refund service: %w", err)
	}
	defer func() { _ = res.Body.Close() }()
	data, err := io.ReadAll(io.LimitReader(res.Body, 1<<16))
	if err != nil {
		return d, fmt.Errorf("refund service: %w", err)
	}
	// The answer counts only if it is about this transfer: a service that answers twice can have its second answer read as that to the
	// next request on the connection.
	var told struct{ Reference, Serial, Reason string }
	known := json.Unmarshal(data, &told) == nil && told.Reference == t.Reference
	switch {
	case known && res.StatusCode == http.StatusOK && told.Serial != "":
		return Decision{Paid: true, Serial: told.Serial}, nil
	case known && res.StatusCode == http.StatusUnprocessableEntity && told.Reason != "":
		return Decision{Reason: told.Reason}, nil
	}
	return d, fmt.Errorf("refund service: status %d: %.200q", res.StatusCode, data)
}
