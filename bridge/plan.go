package bridge

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"zulip-nats/events"
	"zulip-nats/poller"
	"zulip-nats/stream"
	"zulip-nats/subjects"
)

// Which messages a lost queue kept from us follows from one argument.
//
// Zulip gives a message its id when it is inserted, and its event to the queues when the
// transaction is committed, at most commitTime later; events follow commit. Let Y be a
// live message that the stream holds, and B one that was sent commitTime or more before
// Y, both by Zulip's clock. Any message with an id at or below B's was inserted before B,
// so it was committed before Y was sent, and so its event came before Y's. The stream has
// the events of a queue in order: if Y is stored, so is everything up to B. B is the
// lower bound, and above it messages are compared one by one with what the stream holds.
//
// To compare, the stream is read back until nothing older can have an id above B: a
// message W that was sent commitTime or more before B was in the queue before anything
// inserted behind B. Zulip may deliver an old message again, which then stands among the
// newest. So it takes more than redeliveredMost of them, or the beginning of what the
// stream holds.
//
// No count takes part in it but that one, and no clock but Zulip's, compared with itself.
const (
	// commitTime is how long a transaction of Zulip's may take, and what its clock may be
	// set by in that time.
	commitTime = 2 * 60 // seconds
	// redeliveredMost is how many messages may be delivered again at once: what RabbitMQ
	// had given to Tornado and got no answer to (zulip/zulip, zerver/lib/queue.py,
	// prefetch).
	redeliveredMost = 100
	// overlapIDs is how far below what the stream still holds messages are looked for
	// whose transaction was open when its limits took the others.
	overlapIDs = 100

	// firstLookBack is how many sequences are read back first, lookBackGrows how many
	// times more each time that they do not suffice.
	firstLookBack = 4096
	lookBackGrows = 4
)

// heldMessage is a message that the stream holds.
type heldMessage struct {
	seq  uint64
	id   int64
	sent int64 // seconds of Zulip's clock; 0: not known, as of one that is in the object store
	live bool  // it came as an event, and not from history
}

// settled finds the lower bound in messages in the order of the stream: every message
// with an id at or below it is stored, or was before our time. enough says that no
// message before the first of these has an id above it. ok is false where the messages do
// not say it.
func settled(msgs []heldMessage) (bound int64, enough, ok bool) {
	newest, sent := newestSent(msgs), int64(0)
	for _, m := range msgs {
		if m.sent > 0 && m.sent <= newest-commitTime && m.id > bound {
			bound, sent, ok = m.id, m.sent, true
		}
	}
	older := 0
	for _, m := range msgs {
		if ok && m.sent > 0 && m.sent <= sent-commitTime {
			older++
		}
	}
	return bound, older > redeliveredMost, ok
}

// newestSent is when the newest message that came as an event was sent.
func newestSent(msgs []heldMessage) (sent int64) {
	for _, m := range msgs {
		if m.live {
			sent = max(sent, m.sent)
		}
	}
	return sent
}

// refillInputs is what a plan is made of, gathered beforehand.
type refillInputs struct {
	held   []heldMessage // the newest messages of the stream, or all
	all    bool          // all
	info   stream.Info
	before *events.Queue     // of the queue that was lost
	upTo   events.MessageIDs // the newest ids that history shows in its queries
	erased bool              // some may be missing because they were erased
}

// plan decides which messages are asked for after a queue was lost, and where in the
// stream those begin with which they are compared.
func plan(r *events.Queue, in refillInputs) {
	asked := missed(in.before)
	p := &events.Refill{Own: receives(asked, false), Public: receives(asked, true), Narrow: asked.Narrow,
		NoDirect: asked.NoDirectMessages, UpTo: in.upTo, Until: refillUntil(r)}
	r.Refill, r.Held = p, &events.Held{From: 1, UpToID: upTo(p)}
	r.Cut = in.before.Cut
	r.NoDirectUpTo = notWantedUpTo(in.before, r.Newest.Max())
	floor, story := events.MessageIDs{Own: events.Unknown, Public: events.Unknown}, in.before.Begin
	if story != nil {
		floor = story.Newest
	}
	lowest := floor.Own // of the queries that are made
	if p.Public && (!p.Own || floor.Public < lowest) {
		lowest = floor.Public
	}
	if len(in.held) > 0 {
		r.Held.From = in.held[0].seq
	}
	// From where on nobody knows of what the stream does not hold any more. The sequence of
	// a beginning is 0 if the stream that it was in is no more: then what it calls settled
	// was stored there.
	known := max(lowest, 0)
	if story != nil && story.Seq == 0 {
		known = 0
	}
	bound, enough, ok := settled(in.held)
	var open *events.Open // committed since the gap before, perhaps, and lost with the queue
	if story != nil && story.Open != nil && newestSent(in.held) < story.Open.At+commitTime {
		open = story.Open
	}
	switch {
	case ok && (enough || lowest != events.Unknown):
		p.Above = events.MessageIDs{Own: bound, Public: bound}
		if open != nil && story.Newest.Max() > bound { // above the bound one may be open still
			open = &events.Open{Above: max(open.Above, bound), At: open.At}
		} else {
			open = nil
		}
	case story != nil && in.unbroken(story.Seq) && (story.Newest.Own != events.Unknown || len(in.held) == 0):
		p.Above = floor // everything since the beginning is held, or missing
	case len(in.held) > 0:
		// The limits took what was before. Among what they left may be one that was
		// delivered again.
		oldest, sent := in.held[0], newestSent(in.held)
		for _, m := range in.held {
			if oldest = m; !ok || m.sent > sent-commitTime {
				break
			}
		}
		low := oldest.id - 1
		p.Above = events.MessageIDs{Own: low, Public: low}
		if whole := story != nil && in.unbroken(story.Seq); oldest.sent > 0 && !whole {
			p.Overlap, p.OverlapAbove = oldest.sent-commitTime, max(low-overlapIDs, lowest, 0)
		}
		if p.Overlap > 0 {
			low = p.OverlapAbove
		}
		if known < low {
			p.NotCompared = &events.Range{Above: known, UpTo: low}
		}
	default:
		// What was stored since is younger than the record, and would be here. Of what
		// was before nothing is left to say whether a transaction was open.
		p.Above = atLeast(in.before.Newest, floor)
		if story != nil && known < p.Above.Max() {
			p.NotCompared = &events.Range{Above: known, UpTo: p.Above.Max()}
		}
	}
	p.Above = atLeast(p.Above, floor)
	if open != nil {
		p.NotCompared = notCompared(open, story, p.NotCompared)
	}
	if p.Overlap > 0 {
		open = &events.Open{Above: p.OverlapAbove, At: newestSent(in.held)}
	}
	if p.Own && p.Above.Own == events.Unknown || p.Public && p.Above.Public == events.Unknown {
		p.Unknown = true
	}
	r.Begin = &events.Beginning{Seq: max(r.Held.From, in.info.FirstSeq), Newest: p.Above, Open: open}
	// What was not asked for of the queue before is not missing, and begins now.
	if !p.Own {
		r.Begin.Newest.Own, p.Above.Own = r.Newest.Own, p.UpTo.Own
	}
	if !p.Public {
		r.Begin.Newest.Public, p.Above.Public = r.Newest.Public, p.UpTo.Public
	}
	if p.Unknown {
		r.Begin.Newest = r.Newest
	}
}

// atLeast is for each query the larger id.
func atLeast(a, b events.MessageIDs) events.MessageIDs {
	return events.MessageIDs{Own: max(a.Own, b.Own), Public: max(a.Public, b.Public)}
}

// notCompared adds ids to those of which nobody knows whether a message is missing.
func notCompared(o *events.Open, story *events.Beginning, others *events.Range) *events.Range {
	all := events.Range{Above: o.Above, UpTo: story.Newest.Max()}
	if others != nil {
		all = events.Range{Above: min(all.Above, others.Above), UpTo: max(all.UpTo, others.UpTo)}
	}
	return &all
}

// unbroken says whether the stream holds all that was stored from a sequence on, as far
// as its limits are concerned. Where messages were erased, fewer than the limit for a
// subject do not say that none were taken by it.
func (in *refillInputs) unbroken(from uint64) bool {
	most := in.info.MaxPerSubject
	return in.all && in.info.FirstSeq <= from && (most <= 0 || !in.erased && int64(len(in.held)) < most)
}

// planRefill gathers what a plan is made of, and makes it. opened tells of the gap.
func (b *Bridge) planRefill(ctx context.Context, r *events.Queue, opened *events.GapOpened,
	before *events.Queue) error {
	in := refillInputs{before: before}
	var err error
	if in.info, err = b.info(ctx); err != nil {
		return err
	}
	if in.before == nil {
		unknown := events.MessageIDs{Own: events.Unknown, Public: events.Unknown}
		in.before = &events.Queue{Options: b.poller.Options.JSON(), Newest: unknown, Assumed: true}
	}
	if in.held, in.all, err = b.newestHeld(ctx); err != nil {
		return err
	}
	if in.info.MaxPerSubject > 0 {
		m, err := b.lastOn(ctx, b.realm.Record(subjects.Erased))
		if err != nil {
			return err
		}
		in.erased = b.cfg.EraseDeleted || m != nil
	}
	if len(in.held) == 0 && in.before.Assumed && b.cfg.StartFrom.set() {
		if in.before.Newest, err = b.startFrom(ctx, r); err != nil {
			return err
		}
	}
	// The new queue may ask for less.
	asked, now := missed(in.before), b.poller.Options
	if in.upTo = r.Newest; receives(asked, false) && (!receives(now, false) ||
		receives(asked, true) != receives(now, true) || !slices.Equal(asked.Narrow, now.Narrow)) {
		if in.upTo, err = b.askNewest(ctx, asked, r.Life()); err != nil {
			return err
		}
	}
	plan(r, in)
	r.Refill.Cause, r.Refill.Since, r.Refill.Missing = opened.Cause, opened.LastStored, opened.Missing
	r.Refill.SentSince = newestSent(in.held)
	return nil
}

// newestHeld reads back the newest messages of the stream, oldest first, until they
// suffice for [settled], or all of them.
func (b *Bridge) newestHeld(ctx context.Context) (held []heldMessage, all bool, err error) {
	until, err := b.lastOn(ctx, b.onMessages)
	if err != nil || until == nil {
		return nil, true, err
	}
	for back := uint64(firstLookBack); ; back *= lookBackGrows {
		all = back >= until.Seq
		from := stream.Start{Seq: max(1, until.Seq-min(until.Seq, back))}
		err := b.patiently(ctx, func() error {
			held = held[:0]
			return b.stream.Scan(ctx, b.onMessages, from, until.Seq, false, func(m *stream.Stored) error {
				id, ok := headerInt(m, events.HeaderMessageID)
				if _, ours := resumePointOf(m); ours && ok {
					held = append(held, heldMessage{seq: m.Seq, id: id, sent: sentAt(m.Data),
						live: header(m, events.HeaderOrigin) == events.OriginLive})
				}
				return nil
			})
		})
		if err != nil {
			return nil, false, err
		}
		if _, enough, ok := settled(held); all || ok && enough {
			return held, all, nil
		}
	}
}

// sentAt reads when a message was sent out of its event, in seconds of Zulip's clock; 0
// where the event does not say it, or is not here.
func sentAt(event []byte) int64 {
	var body struct {
		Message struct {
			Timestamp int64 `json:"timestamp"`
		} `json:"message"`
	}
	if json.Unmarshal(event, &body) != nil {
		return 0
	}
	return body.Message.Timestamp
}

// refillUntil is when a refill has to end: at half of the granted idle time.
func refillUntil(r *events.Queue) time.Time { return r.Time.Add(r.Life() / 2) }

// upTo is the largest id that a refill may bring, or unknown.
func upTo(p *events.Refill) int64 {
	if p.Own && p.UpTo.Own == events.Unknown || p.Public && p.UpTo.Public == events.Unknown {
		return events.Unknown
	}
	return p.UpTo.Max()
}

// optionsOf says what the queue of a record was asked for, as far as it concerns
// messages. What cannot be read asked for nothing.
func optionsOf(r *events.Queue) (o poller.Options) {
	var body struct {
		EventTypes       []string    `json:"event_types"`
		Narrow           [][2]string `json:"narrow"`
		AllPublicStreams bool        `json:"all_public_streams"`
		ExcludeTypes     []string    `json:"exclude_types"`
		NoDirectMessages bool        `json:"no_direct_messages"`
	}
	if json.Unmarshal(r.Options, &body) != nil {
		return poller.Options{EventTypes: []string{}}
	}
	return poller.Options{EventTypes: body.EventTypes, Narrow: body.Narrow, AllPublicStreams: body.AllPublicStreams,
		ExcludeTypes: body.ExcludeTypes, NoDirectMessages: body.NoDirectMessages}
}

// missed is what a lost queue was asked for, and what a refill was that it left unfinished:
// one that was retired meanwhile may have had a narrower successor.
func missed(r *events.Queue) poller.Options {
	o := optionsOf(r)
	if u := r.Refill; u != nil {
		if u.Own || u.Public {
			o.EventTypes, o.ExcludeTypes = nil, nil
		}
		o.NoDirectMessages = o.NoDirectMessages || u.NoDirect
		o.AllPublicStreams = o.AllPublicStreams || u.Public
		if !slices.Equal(o.Narrow, u.Narrow) {
			o.Narrow = nil
		}
	}
	return o
}

// receives says whether a queue with these options gets messages: those of the account,
// or those of all public channels besides.
func receives(o poller.Options, public bool) bool {
	return (o.EventTypes == nil || slices.Contains(o.EventTypes, "message")) &&
		!slices.Contains(o.ExcludeTypes, "message") && (!public || o.AllPublicStreams)
}

// notWantedUpTo is up to which id direct messages were not wanted, for the queue behind
// one; newest is the largest id at that time.
func notWantedUpTo(before *events.Queue, newest int64) int64 {
	if optionsOf(before).NoDirectMessages {
		return max(before.NoDirectUpTo, newest)
	}
	return before.NoDirectUpTo
}

// cutMost is how many ranges of ids that were cut are remembered.
const cutMost = 8

// withCut adds to ranges of ids what a gap-closed record says was not refilled.
func withCut(before []events.Range, n *events.NotRefilled) []events.Range {
	if n == nil || n.UpToID <= n.AboveID || strings.HasPrefix(n.Reason, reasonUnknown) {
		return before
	}
	all := append(slices.Clone(before), events.Range{Above: n.AboveID, UpTo: n.UpToID})
	return all[max(0, len(all)-cutMost):]
}
