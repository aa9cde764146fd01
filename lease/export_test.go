package lease

import "time"

// Deadline is until when the holder believes in itself.
func (l *Lease) Deadline() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.deadline.mono
}
