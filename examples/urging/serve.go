package main

import (
	"context"
	"fmt"
	"io"

	"github.com/pgonce/pgonce/examples/internal/demo"
)

// serve leaves one instance up, with two tickets.
func serve(ctx context.Context, opt options, g *demo.Ground, out io.Writer) error {
	opt.tickets, opt.Faults = 2, false
	s, err := prepare(ctx, opt, g, out, right)
	if err != nil {
		return err
	}
	defer s.Close()
	url, ticket := s.Crowd.URLs[0], s.tickets[0]
	fmt.Fprintf(out, `The service is up. Try, in another shell:

  curl -i -X POST -H 'X-User: ann' %[1]s/tickets/%[2]d/urges
      201, "urged, next at ..."; once more: 200, "already urged, next at ...", the same minute, with X-Cached: true

  curl -i -X POST -H 'X-User: bob' %[1]s/tickets/%[2]d/urges
      201, the same urge, which ends when it would have ended without bob

  curl -s %[1]s/tickets/%[2]d/urges
      one urge, "pushed" once, with two users

  curl -i -X POST -H 'X-User: ann' %[3]s/tickets/%[2]d/urges
      another instance, with another cache: 200 all the same

  curl -i -X POST -H 'X-User: ann' %[1]s/tickets/999999999/urges
      404

The database is %[4]s
Ctrl-C ends it.
`, url, ticket, s.Crowd.URLs[1], s.URL)
	<-ctx.Done()
	return nil
}
