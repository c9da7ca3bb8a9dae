//go:build unix

package idemhttp_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgonce/pgonce/driver/pgxdriver"
	"github.com/pgonce/pgonce/idem"
	"github.com/pgonce/pgonce/idem/idemhttp"
	"github.com/pgonce/pgonce/internal/pgtest"
)

var CreateRefund = idem.Op{Name: "refund.create", ReplayFor: idem.Forever, RememberFor: idem.Forever}

var errNothingLeft = errors.New("more than was paid")

// merchantOf says who is asking, by what was authenticated.
func merchantOf(r *http.Request) (string, error) {
	if r.Header.Get("Authorization") != "Bearer secret-of-m7" {
		return "", idemhttp.ErrUnauthenticated
	}
	return "merchant-7", nil
}

// createRefund runs once per key and merchant. What it writes is committed before the response leaves.
func createRefund(ctx context.Context, tx pgx.Tx, r *http.Request) (idemhttp.Response, error) {
	var in struct {
		Cents int64 `json:"cents"`
	}
	bad := json.NewDecoder(r.Body).Decode(&in)
	switch {
	case bad != nil || in.Cents <= 0:
		return idemhttp.JSON(http.StatusBadRequest, "cents, please") // rolled back, not stored
	case in.Cents > 10_000:
		return idemhttp.Response{}, idem.Final(errNothingLeft) // rolled back, stored: 422 for good
	}
	var id int64
	err := tx.QueryRow(ctx, `INSERT INTO refund (payment, cents) VALUES ($1, $2) RETURNING id`, r.PathValue("payment"), in.Cents).Scan(&id)
	if err != nil {
		return idemhttp.Response{}, err // rolled back, not stored: 500
	}
	return idemhttp.JSON(http.StatusCreated, map[string]int64{"refund": id})
}

func ExampleHandle() {
	const table = `CREATE TABLE refund (id bigint GENERATED ALWAYS AS IDENTITY, payment text NOT NULL, cents bigint NOT NULL)`
	pgtest.Example(table, func(_ context.Context, pool *pgxpool.Pool) error {
		keys, err := idem.New(pgxdriver.New(pool), nil)
		if err != nil {
			return err
		}
		refunds, err := idemhttp.Handle(keys, CreateRefund, merchantOf, createRefund, nil)
		if err != nil {
			return err
		}
		mux := http.NewServeMux()
		mux.Handle("POST /payments/{payment}/refunds", refunds)
		server := httptest.NewServer(mux)
		defer server.Close()

		for _, request := range []struct{ key, body string }{
			{`"a3f1"`, `{"cents": 1250}`}, {`"a3f1"`, `{"cents": 1250}`}, {`"a3f1"`, `{"cents": 9999}`}, {`"b702"`, `{"cents": 99999}`}, {``, `{}`},
		} {
			req, err := http.NewRequest(http.MethodPost, server.URL+"/payments/p1/refunds", strings.NewReader(request.body))
			if err != nil {
				return err
			}
			req.Header.Set("Authorization", "Bearer secret-of-m7")
			if request.key != "" {
				req.Header.Set("Idempotency-Key", request.key)
			}
			resp, err := server.Client().Do(req)
			if err != nil {
				return err
			}
			body, err := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if err != nil {
				return err
			}
			var p struct{ Type string }
			_ = json.Unmarshal(body, &p)
			if _, slug, ok := strings.Cut(p.Type, "#"); ok {
				body = []byte(slug)
			}
			fmt.Printf("%d %s, replayed: %t\n", resp.StatusCode, body, resp.Header.Get("Idempotent-Replayed") == "true")
		}
		return nil
	})
	// Output:
	// 201 {"refund":1}, replayed: false
	// 201 {"refund":1}, replayed: true
	// 422 ProblemMismatch, replayed: false
	// 422 ProblemRefused, replayed: false
	// 400 ProblemMissingKey, replayed: false
}

// post sends a request as a client does, and says what came back.
func post(url, key, body string) (string, error) {
	req, err := http.NewRequest(http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		return "", err
	}
	req.Header.Set("Authorization", "Bearer secret-of-m7")
	req.Header.Set("Idempotency-Key", key)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(resp.Body)
	return fmt.Sprintf("%d %s, replayed: %t", resp.StatusCode, bytes.TrimSpace(answer), resp.Header.Get("Idempotent-Replayed") == "true"), err
}

func ExampleMiddleware() {
	const table = `CREATE TABLE refund (id bigint GENERATED ALWAYS AS IDENTITY, cents bigint NOT NULL)`
	handler := func(w http.ResponseWriter, r *http.Request) {
		var in struct {
			Cents int64 `json:"cents"`
		}
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil || in.Cents > 10_000 {
			idemhttp.Final(w) // rolled back, and the answer for good
			http.Error(w, "more than was paid", http.StatusUnprocessableEntity)
			return
		}
		var id int64
		tx, err := idemhttp.Tx[pgx.Tx](r.Context())
		if err == nil {
			err = tx.QueryRow(r.Context(), `INSERT INTO refund (cents) VALUES ($1) RETURNING id`, in.Cents).Scan(&id)
		}
		if err != nil {
			http.Error(w, "not now", http.StatusInternalServerError) // rolled back, and forgotten
			return
		}
		w.WriteHeader(http.StatusCreated) // nothing leaves before the commit
		_, _ = fmt.Fprintf(w, "refund %d", id)
	}
	pgtest.Example(table, func(_ context.Context, pool *pgxpool.Pool) error {
		keys, err := idem.New(pgxdriver.New(pool), nil)
		if err != nil {
			return err
		}
		once, err := idemhttp.Middleware(keys, CreateRefund, merchantOf, nil)
		if err != nil {
			return err
		}
		mux := http.NewServeMux()
		mux.Handle("POST /refunds", once(http.HandlerFunc(handler)))
		server := httptest.NewServer(mux)
		defer server.Close()
		for _, request := range []struct{ key, body string }{
			{`"a3f1"`, `{"cents": 1250}`}, {`"a3f1"`, `{"cents": 1250}`}, {`"b702"`, `{"cents": 99999}`}, {`"b702"`, `{"cents": 99999}`},
		} {
			answer, err := post(server.URL+"/refunds", request.key, request.body)
			if err != nil {
				return err
			}
			fmt.Println(answer)
		}
		return nil
	})
	// Output:
	// 201 refund 1, replayed: false
	// 201 refund 1, replayed: true
	// 422 more than was paid, replayed: false
	// 422 more than was paid, replayed: true
}

// served puts a handler behind a Middleware and posts the requests to it, each under its key.
func served(handler http.HandlerFunc, keyOf ...string) {
	const table = `CREATE TABLE refund (id bigint GENERATED ALWAYS AS IDENTITY, cents bigint NOT NULL)`
	pgtest.Example(table, func(_ context.Context, pool *pgxpool.Pool) error {
		keys, err := idem.New(pgxdriver.New(pool), nil)
		if err != nil {
			return err
		}
		once, err := idemhttp.Middleware(keys, CreateRefund, merchantOf, nil)
		if err != nil {
			return err
		}
		server := httptest.NewServer(once(handler))
		defer server.Close()
		for _, key := range keyOf {
			answer, err := post(server.URL, key, `{}`)
			if err != nil {
				return err
			}
			fmt.Println(answer)
		}
		return nil
	})
}

// The account stays closed, so the repeat is not to try again: it gets the same answer, and the handler does not run.
func ExampleFinal() {
	handler := func(w http.ResponseWriter, _ *http.Request) {
		fmt.Println("looking the account up")
		idemhttp.Final(w)
		http.Error(w, "the account is closed", http.StatusUnprocessableEntity)
	}
	served(handler, `"a3f1"`, `"a3f1"`)
	// Output:
	// looking the account up
	// 422 the account is closed, replayed: false
	// 422 the account is closed, replayed: true
}

// What is written in the transaction of the request is committed with its response, or not at all.
func ExampleTx() {
	handler := func(w http.ResponseWriter, r *http.Request) {
		tx, err := idemhttp.Tx[pgx.Tx](r.Context())
		if err != nil { // ErrNoTx: not behind a Middleware
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		var id int64
		if err := tx.QueryRow(r.Context(), `INSERT INTO refund (cents) VALUES (1250) RETURNING id`).Scan(&id); err != nil {
			http.Error(w, "not now", http.StatusInternalServerError)
			return
		}
		_, _ = fmt.Fprintf(w, "refund %d", id)
	}
	served(handler, `"a3f1"`, `"a3f1"`, `"b702"`)
	// Output:
	// 200 refund 1, replayed: false
	// 200 refund 1, replayed: true
	// 200 refund 2, replayed: false
}

func ExampleJSON() {
	resp, err := idemhttp.JSON(http.StatusCreated, map[string]int{"refund": 7})
	fmt.Println(resp.Status, resp.Header, string(resp.Body), err)
	// Output: 201 map[Content-Type:[application/json]] {"refund":7} <nil>
}
