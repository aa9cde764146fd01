package bridge

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"time"

	"zulip-nats/events"
	"zulip-nats/poller"
	"zulip-nats/stream"
	"zulip-nats/subjects"
)

// notRecoverable is the honest list: what happened in a gap and leaves no trace in GET
// /messages.
var notRecoverable = []string{
	"edits, moves and deletions of messages (those refilled are in their present state)",
	"messages that the account may not read any more: deleted, moved out of its sight, in a private channel " +
		"that it left",
	"with a narrow: messages that were moved out of it (those moved into it are refilled)",
	"reactions, read and starred flags, polls and other widgets",
	"typing, presence, status",
	"channels, subscriptions, users, groups and settings",
}

// recordEntry makes a record that leaves us at a position. Records carry the queue and
// the position, and an event id only where they stand in the place of an event.
func (b *Bridge) recordEntry(record, kind string, at poller.Position, body any, more ...stream.Header) (entry, error) {
	data, err := json.Marshal(body)
	if err != nil {
		return entry{}, fmt.Errorf("making a %s record: %w", record, err)
	}
	return b.rawRecord(record, b.realm.Record(kind), at, data, more...), nil
}

// rawRecord is recordEntry with a body that is made already, on any subject.
func (b *Bridge) rawRecord(record, subject string, at poller.Position, data []byte, more ...stream.Header) entry {
	b.recordsMade++
	headers := append([]stream.Header{
		{Key: events.HeaderPosition, Value: itoa(at.Last)},
		{Key: events.HeaderRecord, Value: record},
		{Key: events.HeaderRecordID, Value: b.writer + "-" + itoa(b.recordsMade)},
		{Key: events.HeaderWriter, Value: b.writer},
	}, more...)
	if at.Queue != "" {
		headers = append(headers, stream.Header{Key: events.HeaderQueueID, Value: at.Queue})
	}
	if b.cfg.CloudEvents {
		headers = append(headers, b.cloudHeaders(headers, events.CloudTypeRecord+record, 0)...)
	}
	return entry{after: at, tally: recordTally[record],
		msg: stream.Message{Subject: subject, Headers: headers, Data: data}}
}

// skipped makes the record of a live message event whose message the stream holds
// already.
func (b *Bridge) skipped(ev *poller.Event, at poller.Position) (entry, error) {
	reason := "the stream holds this message already"
	if b.held.deleted[ev.MessageID] {
		reason = "the message is deleted, as the stream has told already"
	}
	return b.recordEntry(events.RecordSkipped, subjects.Skipped, at,
		events.Skipped{Record: events.RecordSkipped, EventID: ev.ID, MessageID: ev.MessageID,
			Reason: reason},
		stream.Header{Key: events.HeaderEventID, Value: itoa(ev.ID)},
		stream.Header{Key: events.HeaderMessageID, Value: itoa(ev.MessageID)})
}

// queueEntry makes the record of a queue, which leaves us at a position in it. next is
// what comes behind it: polling, or a refill.
func (b *Bridge) queueEntry(r *events.Queue, last int64, next string) (entry, error) {
	return b.recordEntry(events.RecordQueue, subjects.Queue, poller.Position{Queue: r.QueueID, Last: last}, r,
		stream.Header{Key: events.HeaderNext, Value: next})
}

func nextOf(in phase) string {
	if in == phaseRefill {
		return events.NextRefill
	}
	return events.NextPoll
}

// changedMost is how many ids of changed messages a record names, recordSlack how much
// larger than the record of a queue another record may be.
const (
	changedMost = 1000
	recordSlack = 256
)

// bigEnough says whether the stream takes our records, the longest of which tells of a
// queue. What may grow in the others is cut until it fits.
func (b *Bridge) bigEnough() error {
	id := strings.Repeat("x", 128)
	ids := events.MessageIDs{Own: math.MaxInt64, Public: math.MaxInt64}
	now := time.Now().UTC()
	account := b.account()
	r := &events.Queue{Record: events.RecordQueue, Why: events.WhyOptions, QueueID: id, Previous: id, Site: b.cfg.Site,
		MovedFrom: id, Account: account,
		Options: b.poller.Options.JSON(), Subjects: layoutName(b.realm), Assumed: true, ZulipVersion: id, FeatureLevel: math.MaxInt32,
		LifeSeconds: 1e6, LifeSaid: true,
		PatienceSeconds: 1e6, Newest: ids,
		Begin: &events.Beginning{Seq: math.MaxUint64, Newest: ids,
			Open: &events.Open{Above: math.MaxInt64, At: math.MaxInt64}},
		Held:   &events.Held{From: math.MaxUint64, Until: math.MaxUint64, UpToID: math.MaxInt64},
		Bridge: b.cfg.Version, Time: now}
	ranges := &events.Range{Above: math.MaxInt64, UpTo: math.MaxInt64}
	for range cutMost {
		r.Cut = append(r.Cut, *ranges)
	}
	r.Refill = &events.Refill{Own: true, Public: true, Narrow: b.poller.Options.Narrow, Above: ids, UpTo: ids,
		Overlap:      math.MaxInt64,
		OverlapAbove: math.MaxInt64, Unknown: true, NotCompared: ranges, Cause: id + id, Since: now,
		SentSince: math.MaxInt64, Missing: ranges,
		Until: now, Done: math.MaxInt64, Refilled: math.MaxInt32, TooOld: math.MaxInt32,
		Found: events.Found{ChangedMore: math.MaxInt32, Unreadable: math.MaxInt32,
			Hidden: &events.Range{Above: math.MaxInt64, UpTo: math.MaxInt64}}}
	if b.poller.Options.NoDirectMessages {
		r.NoDirectUpTo, r.Refill.NoDirect, r.Refill.Found.Excluded = math.MaxInt64, true, math.MaxInt32
	}
	for range changedKept {
		r.Refill.Found.Changed = append(r.Refill.Found.Changed, math.MaxInt64)
	}
	for range tooLargeMost {
		r.Refill.Found.TooLarge = append(r.Refill.Found.TooLarge, math.MaxInt64)
	}
	e, err := b.queueEntry(r, math.MaxInt64, events.NextRefill)
	if err != nil {
		return err
	}
	e.msg.Data = append(e.msg.Data, make([]byte, recordSlack)...)
	if b.stream.Fits(&e.msg) {
		return nil
	}
	size := len(e.msg.Data)
	for _, h := range e.msg.Headers {
		size += len(h.Key) + len(h.Value) + len(": \r\n")
	}
	return &ConfigError{fmt.Sprintf("the stream of %s takes no message of %d bytes, which a record of ours on %s may "+
		"have: raise its max_msg_size (nats stream edit), or the max_payload of the NATS server, to 8 KiB at "+
		"least", b.realm.All(), size,
		e.msg.Subject)}
}
