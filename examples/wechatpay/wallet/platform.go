package wallet

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
)

// Platform is a client of the payment platform.
type Platform struct {
	url    string
	client *http.Client
}

// NewPlatform asks the platform at url by a client, which should have a Timeout.
func NewPlatform(url string, client *http.Client) *Platform { return &Platform{url, client} }

// Confirm asks whether a callback says the truth. Nil is yes, [ErrNotPaid] is no, any other error is that nobody knows.
func (p *Platform) Confirm(ctx context.Context, c Callback) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url+"/payments/"+url.PathEscape(c.Number), nil)
	if err != nil {
		return err
	}
	res, err := p.client.Do(req)
	if err != nil {
		return fmt.Errorf("platform: %w", err)
	}
	defer func() { _ = res.Body.Close() }()
	data, err := io.ReadAll(io.LimitReader(res.Body, 1<<16))
	if err != nil {
		return fmt.Errorf("platform: %w", err)
	}
	// The answer counts only if it is about this order: a platform that answers twice can have its second answer read as that to the
	// next request on the connection.
	var told Callback
	if json.Unmarshal(data, &told) != nil || told.Number != c.Number {
		return fmt.Errorf("platform: status %d: %.200q", res.StatusCode, data)
	}
	switch {
	case res.StatusCode == http.StatusOK && told == c:
		return nil
	case res.StatusCode == http.StatusOK, res.StatusCode == http.StatusNotFound:
		return fmt.Errorf("%w: transaction %s over %d", ErrNotPaid, c.Transaction, c.AmountCents)
	}
	return fmt.Errorf("platform: status %d: %.200q", res.StatusCode, data)
}
