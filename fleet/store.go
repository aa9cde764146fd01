package fleet

import (
	"context"
	"time"
)

// Store is the KV bucket, as far as instances need it. The real one is made of a
// [stream.Conn]; package fleet/model has one in memory.
//
// Errors are [*stream.Error], or ctx's own, or [*UnsupportedError]. The kind
// [stream.Refused] means that the key is at another revision than was expected.
type Store interface {
	// Ensure makes the bucket if it is missing, and looks whether it can hold keys that
	// expire.
	Ensure(ctx context.Context, replicas int) error
	// Write puts a value into a key that is at that revision, 0 if it was never written, and
	// gives its new one. The key lives for so long, in whole seconds; 0 is for ever.
	Write(ctx context.Context, key string, value []byte, revision uint64, life time.Duration) (uint64, error)
	// Delete leaves a mark in a key that is at that revision, and gives that of the mark,
	// which is not kept for ever.
	Delete(ctx context.Context, key string, revision uint64) (uint64, error)
	// Read asks for a key. The answer may be an old one.
	Read(ctx context.Context, key string) (Entry, error)
	// Watch gives what each key holds and then all changes, in the order of their
	// revisions. Once it has returned, no later change is missed. The channel is closed
	// when ctx ends, or behind an update with the error that ended the watch.
	Watch(ctx context.Context) (<-chan Update, error)
	// RoundTrip is the time to the server and back, as far as it is known.
	RoundTrip() time.Duration
}

// Entry is what a key holds. The zero Entry: there is nothing.
type Entry struct {
	Revision uint64
	Value    []byte // nil: the key is deleted or expired
}

// Update is a change of a key, or the end of the watch.
type Update struct {
	Key string
	Entry
	Err error
}
