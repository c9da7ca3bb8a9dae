package urges

import (
	"context"
	"time"
)

// Status is an urge, for whoever has the ticket.
type Status struct {
	Urge     int64     `json:"urge"`
	State    State     `json:"state"`
	OpenedAt time.Time `json:"opened_at"`
	EndsAt   time.Time `json:"ends_at"`
	LatestAt time.Time `json:"latest_at"`
	Users    int       `json:"users"`
}

// Status reads the urges of a ticket, the latest first.
func (s *Service) Status(ctx context.Context, ticket int64) (all []Status, err error) {
	const read = `
SELECT u.id, u.state, u.opened_at, u.ends_at, u.latest_at, (SELECT count(*) FROM urging.urger r WHERE r.urge = u.id)
FROM urging.urge u WHERE u.ticket = $1 ORDER BY u.ends_at DESC LIMIT 100`
	rows, err := s.db.QueryContext(ctx, read, ticket)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	all = []Status{} // as JSON, none is [] and not null
	for rows.Next() {
		var u Status
		if err := rows.Scan(&u.Urge, &u.State, &u.OpenedAt, &u.EndsAt, &u.LatestAt, &u.Users); err != nil {
			return nil, err
		}
		all = append(all, u)
	}
	return all, rows.Err()
}
