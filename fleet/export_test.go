package fleet

import "time"

// Deadline is until when the holder believes in itself.
func (l *Lease) Deadline() time.Time {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	return l.s.deadline.mono
}

// NewBucket is the Store in NATS.
func NewBucket(cfg Config) (Store, error) {
	api, err := cfg.complete()
	if err != nil {
		return nil, err
	}
	return newBucket(cfg, api), nil
}
