package bridge

import (
	"crypto/sha256"
	"encoding/hex"
	"time"
	"unicode/utf8"

	"github.com/rs/zerolog"

	"zulip-nats/events"
	"zulip-nats/logevent"
	"zulip-nats/poller"
	"zulip-nats/stream"
	"zulip-nats/subjects"
)

// rejections remembers what was rejected without moving the position: asked again, Zulip
// sends it again, and the record is there.
type rejections struct {
	at   poller.Position
	seen map[string]bool // by SHA-256, in hexadecimal

	said   time.Time // when one was last logged
	silent int       // how many were not, since then
}

// rejectionsEvery is how often at most rejected events are logged; those between are
// counted.
const rejectionsEvery = time.Minute

func (r *rejections) note(log zerolog.Logger, reason string, id *int64, size int64, subject string) {
	if !r.said.IsZero() && time.Since(r.said) < rejectionsEvery {
		r.silent++
		return
	}
	logevent.EventRejected.Warn(log).Str("reason", reason).Interface("event_id", id).Int64("bytes", size).
		Int("others_since", r.silent).
		Msg("an event cannot be carried as it is: it goes to " + subject)
	r.said, r.silent = time.Now(), 0
}

// over logs how many were rejected since one was last logged, once that is a while ago.
func (r *rejections) over(log zerolog.Logger) {
	if r.silent > 0 && time.Since(r.said) >= rejectionsEvery {
		logevent.EventRejected.Warn(log).Int("events", r.silent).
			Stringer("since", time.Since(r.said).Round(time.Second)).
			Msg("further events could not be carried as they are: they are among the rejected")
		r.said, r.silent = time.Now(), 0
	}
}

// rejectedLimit is how many bytes of an event its rejected record keeps, well below what
// any server takes in a message.
const rejectedLimit = 256 << 10

// rejection makes the record of an event that cannot be carried as it is; ok is false if
// it stands already. An event with an id moves the position, unless the id goes back; one
// without moves nothing, so Zulip will send it again.
func (b *Bridge) rejection(ev *poller.Event, at poller.Position, reason string) (e entry, ok bool, err error) {
	sum := ev.SHA256
	if ev.Size <= int64(len(ev.Raw)) {
		sum = sha256.Sum256(ev.Raw)
	}
	digest := hex.EncodeToString(sum[:])
	after := at
	if ev.HasID && ev.ID > at.Last {
		after.Last = ev.ID
	}
	if after == at {
		if b.rejected.at != at {
			b.rejected.at, b.rejected.seen = at, map[string]bool{}
		}
		if b.rejected.seen[digest] {
			return entry{}, false, nil
		}
		b.rejected.seen[digest] = true
	}
	body := events.Rejected{Record: events.RecordRejected, Reason: reason, Size: max(ev.Size, int64(len(ev.Raw))),
		SHA256: digest}
	var headers []stream.Header
	if ev.HasID {
		body.EventID = &ev.ID
		headers = append(headers, stream.Header{Key: events.HeaderEventID, Value: itoa(ev.ID)})
	}
	limit := rejectedLimit
	if ev.Fault != "" && b.leavesOut() {
		limit = 0 // what it is about nobody knows
	}
	if b.byPlace() {
		limit = 0 // not all who read our records may read what is in each place
		if id, ok := aboutRejected(ev.Raw); ok {
			headers = append(headers, stream.Header{Key: events.HeaderMessageID, Value: itoa(id)})
		}
	}
	for ; ; limit /= 2 {
		raw := ev.Raw[:min(limit, len(ev.Raw))]
		body.Cut = int64(len(raw)) < body.Size
		body.Event, body.Base64 = "", nil
		if utf8.Valid(raw) {
			body.Event = string(raw)
		} else {
			body.Base64 = raw
		}
		e, err := b.recordEntry(events.RecordRejected, subjects.Rejected, after, body, headers...)
		if err != nil {
			return entry{}, false, err
		}
		if limit > 0 && !b.stream.Fits(&e.msg) {
			continue
		}
		b.rejected.note(b.log, reason, body.EventID, body.Size, e.msg.Subject)
		return e, true, nil
	}
}
