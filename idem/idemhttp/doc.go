// Package idemhttp answers HTTP requests once per Idempotency-Key, by the draft
// draft-ietf-httpapi-idempotency-key-header-07.
//
// [Handle] makes an http.Handler from a function that runs in the transaction of [idem.Do]. What the
// function writes, the record that it was done and the response are one commit, and the commit
// happens before any byte of the response leaves. A repeat gets the same bytes.
//
//	refunds, err := idemhttp.Handle(keys, CreateRefund, merchantOf, createRefund, nil)
//	mux.Handle("POST /accounts/{account}/refunds", refunds)
//
// [Middleware] does the same for a handler that writes to a ResponseWriter, which is there already, or belongs to a
// framework. Prefer Handle for a new one: its errors are errors, and are tried again where that helps.
//
// # The order of things
//
// The method; who is asking (scope); the key's syntax; the body; the record or the function; the
// commit; the response. Who may not ask is refused before anything is looked up, each time
// anew: a right that was revoked since is not replayed.
//
// # What makes two requests the same
//
// The method, the request target as it came and as middleware has left it (path and query), and
// every byte of the body, or what it says as JSON ([Config.CanonicalJSON]). Another request under the same key gets 422. Other headers are no part
// of that. What the function takes from a header must not change what it does: let scope
// have it, or put it into the body.
//
// # What is stored
//
// Responses of 2xx and 3xx, and those of other 4xx that the function returns beside
// [idem.Final]. Everything else is rolled back and forgotten, so that a repeat runs the function:
// its errors (500), panics, and responses of 401, 403, 408, 409, 425, 429, 5xx and of 4xx that are
// not final, which are sent as they are. [Config.Fate] can decide otherwise.
//
// # Clients that go away
//
// The function runs to its end whether or not its client is still there, on a ctx that
// carries the request's values but not its end. So a lost connection leaves the effect with its
// record, or neither, and a repeat finds out which.
package idemhttp
