package idem

// Followers is how many calls of the store wait in memory.
func Followers[TX any](s *Store[TX]) (n int) {
	s.queue.mu.Lock()
	defer s.queue.mu.Unlock()
	for _, l := range s.queue.lines {
		n += len(l.followers)
	}
	return n
}
