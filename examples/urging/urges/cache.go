package urges

import (
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
)

// cache remembers who has urged what in the window that is open, so that repeats cost the database nothing. It is of
// bounded size, it belongs to one process, and nothing is wrong when it has forgotten: then the database is asked.
//
// It can say "already urged" only while that is true. A window is fixed, so an entry can get old but not wrong, and it is dropped
// before the window ends: the rest of the window is what the database has told, counted from before it was asked. It is counted
// by the monotonic clock, which nobody can set, and by the wall clock too, because the other one stands still while a host sleeps.
type cache struct {
	seen *lru.Cache[visit, memory]
	now  func() time.Time
}

type visit struct {
	ticket int64
	user   string
}

type memory struct {
	answer Answer
	until  time.Time
}

func newCache(size int, now func() time.Time) (*cache, error) {
	seen, err := lru.New[visit, memory](size)
	return &cache{seen, now}, err
}

// put remembers an answer for the rest of its window, as the database had it at some time after asked.
func (c *cache) put(v visit, a Answer, asked time.Time, rest time.Duration) {
	a.Again, a.Opened, a.Cached = true, false, true
	c.seen.Add(v, memory{a, asked.Add(rest)})
}

func (c *cache) get(v visit) (Answer, bool) {
	m, found := c.seen.Get(v)
	if !found {
		return Answer{}, false
	}
	now := c.now()
	if !now.Before(m.until) || !now.Round(0).Before(m.until.Round(0)) { // Round takes the monotonic clock off
		c.seen.Remove(v)
		return Answer{}, false
	}
	return m.answer, true
}
