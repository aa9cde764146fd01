package bridge

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rs/zerolog"

	"zulip-nats/events"
	"zulip-nats/health"
	"zulip-nats/logevent"
	"zulip-nats/poller"
	"zulip-nats/stream"
	"zulip-nats/subjects"
)

// Stream is what the bridge asks of JetStream. [*stream.Stream] is the real one, and says
// what each method promises; the simulation in the tests has a model that is held to the
// same contract.
type Stream interface {
	Last(ctx context.Context) (stream.Cursor, *stream.Stored, error)
	At(ctx context.Context, seq uint64) (*stream.Stored, error)
	LastOn(ctx context.Context, subject string) (*stream.Stored, error)
	Next(ctx context.Context, subject string, seq uint64) (*stream.Stored, error)
	Scan(ctx context.Context, subject string, from stream.Start, until uint64, headersOnly bool,
		f func(*stream.Stored) error) error
	AppendEach(ctx context.Context, after stream.Cursor, source stream.Source) (stream.Cursor, error)
	Fits(m *stream.Message) bool
	Purge(ctx context.Context, subject string, below uint64) error
	PutObject(ctx context.Context, name string, data []byte) error
	Object(ctx context.Context, name string) ([]byte, error)
	Erase(ctx context.Context, epoch, seq uint64) error
	EraseObject(ctx context.Context, epoch uint64, name string) error
	Info(ctx context.Context) (stream.Info, error)
	Dedicated() bool
	StepDown()
	Epoch() uint64
	Edited() uint64
}

// Lease says who of several instances works (package fleet). It is there for economy, one
// poller at a time; safety is the compare-and-swap.
type Lease interface {
	// Context ends when the lease is lost.
	Context() context.Context
	// Held says whether the lease still runs, by our own clock.
	Held() bool
	// Asked ends when another instance is to have it: what is in hand is finished, and it is
	// released.
	Asked() context.Context
	// Release hands it over at once.
	Release(ctx context.Context) error
}

// tail is the end of the stream as this process knows it. Everything of ours that gets
// into the stream goes by its append, and what decides anything is read by it. NATS is
// waited for as long as it takes, by every method but those that say otherwise.
type tail struct {
	realm      subjects.Realm
	onMessages string // the filter for events of type message: zulip.<realm>.message
	writer     string // this instance
	log        zerolog.Logger

	// What the bridge around it does: opens the stream anew; says whether it takes our
	// records, asked whenever the settings are read; makes the record that goes before
	// our next event where a message of others is the newest; knows when Zulip may drop
	// the queue, for the log.
	reopen       func(ctx context.Context) (Stream, error)
	fits         func() error
	refreshEntry func(in phase) (entry, error)
	expires      func() time.Time

	stream Stream
	lease  Lease // nil without one

	// What is known to be stored, for noticing that the stream went back: the echo of the
	// newest message of ours that was read or acknowledged, and its sequence.
	known    poller.Position
	knownSeq uint64
	largest  int64 // the largest id of a message that came as an event and that this process stored

	// The place of the next write; valid while cursorOK, and only on the connection that
	// it was read on. foreign is the subject of the newest message where that is none of
	// ours: then the next write has to be a record (see belowOthers).
	cursor   stream.Cursor
	cursorOK bool
	// The last append may have stored something behind maybeAt, or may yet: it had no
	// answer, and nothing else was seen there.
	maybe   bool
	maybeAt uint64
	foreign string
	below   below
	// Until then a write takes nothing in behind what it began with, because one that did
	// has failed.
	apart time.Time

	// When the stream's settings were last read, and what Edited said then.
	checked time.Time
	edited  uint64

	refused health.Condition // writes that the server refused, for good: there is no end that would be told
	outage  outage
	said    health.Condition // what once has let pass, in this term

	unopened health.Condition // the stream cannot be opened; what is to be said of it, outage does
	report   report
}

// errMoved says that the place is another one than we thought: the stream has to be read
// again before anything else.
var errMoved = errors.New("the stream has moved on")

// errNotLeader says that the lease is gone.
var errNotLeader = errors.New("this instance does not lead any more")

// errAsked says that another instance is to have the lease. It is no loss of it: what is
// under way is finished first.
var errAsked = errors.New("another instance is to lead")

// notLeader is errNotLeader with the reason.
func notLeader(l Lease) error {
	if why := context.Cause(l.Context()); why != nil {
		return fmt.Errorf("%w: %w", errNotLeader, why)
	}
	return errNotLeader
}

// apartFor is how long nothing is taken in behind a write after one has failed that did:
// Zulip is asked again for what followed, which may be much.
const apartFor = time.Minute

// stopGrace is how long a write that is under way at a stop may take to be settled.
const stopGrace = 3 * time.Second

// open gets the stream, waiting for NATS as long as it takes.
func (t *tail) open(ctx context.Context) error {
	if t.stream != nil {
		return nil
	}
	for wait := newRetry(); ; {
		s, err := t.reopen(ctx)
		if err == nil {
			t.stream = s
			t.unopened.Clear()
			if err := t.fits(); err != nil {
				return err
			}
			t.outage.over(t.log)
			return nil
		}
		if mustBeMended(err) || ctx.Err() != nil {
			return err
		}
		t.unopened.Set("", err.Error())
		t.report.failed(SideNATS, err)
		if !stream.Away(err) { // why NATS is away is said by the connection, and nothing else is known yet
			t.outage.note(t.log, err, time.Time{})
		}
		if err := wait.pause(ctx); err != nil {
			return err
		}
	}
}

// read is [locate] with patience: it waits for NATS as long as it takes, and opens the
// stream anew if it was deleted.
func (t *tail) read(ctx context.Context) (resumePoint, error) {
	for wait := newRetry(); ; {
		p, err := locate(ctx, t.stream, t.realm, &t.below)
		if err == nil {
			t.cursor, t.cursorOK, t.foreign = p.cursor, true, p.foreign
			if p.foreign != "" && t.once("foreign: "+p.foreign) {
				logevent.OthersPublish.Warn(t.log).Str("subject", p.foreign).
					Msg("somebody else publishes on the realm's subjects: it does no harm, but each write of ours " +
						"has to wait its turn; give it subjects outside of " + t.realm.All())
			}
			return p, nil
		}
		if ctx.Err() != nil {
			return resumePoint{}, context.Cause(ctx)
		}
		t.outage.deaf = time.Time{}
		t.report.failed(SideNATS, err)
		if err := t.cannotStore(ctx, err); err != nil {
			return resumePoint{}, err
		}
		if err := wait.pause(ctx); err != nil {
			return resumePoint{}, err
		}
	}
}

// cannotStore notes an error of the stream that has to be waited out: said once, with the
// time that is left until Zulip drops the queue. A stream that is gone is opened anew.
// What comes back is what no waiting heals: settings that do not carry the promise.
func (t *tail) cannotStore(ctx context.Context, err error) error {
	if e, ok := errors.AsType[*stream.ConfigError](err); ok && e.Stream != "" {
		return e
	}
	t.outage.note(t.log, err, t.expires())
	if e, ok := errors.AsType[*stream.Error](err); ok && e.Kind == stream.Gone {
		t.stream = nil
		return t.open(ctx)
	}
	return nil
}

// patiently calls f until it succeeds, or says errMoved, waiting for NATS as long as it
// takes.
func (t *tail) patiently(ctx context.Context, f func() error) error {
	for wait := newRetry(); ; {
		err := f()
		if err == nil {
			t.outage.over(t.log)
			return nil
		}
		if errors.Is(err, errMoved) {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		t.report.failed(SideNATS, err)
		if err := t.cannotStore(ctx, err); err != nil {
			return err
		}
		if err := wait.pause(ctx); err != nil {
			return err
		}
	}
}

// lastOn is Stream.LastOn with patience.
func (t *tail) lastOn(ctx context.Context, subject string) (m *stream.Stored, err error) {
	err = t.patiently(ctx, func() (err error) { m, err = t.stream.LastOn(ctx, subject); return err })
	return m, err
}

// ourLastOn is the newest message of ours on a subject, with patience.
func (t *tail) ourLastOn(ctx context.Context, subject string) (m *stream.Stored, err error) {
	err = t.patiently(ctx, func() (err error) { m, err = newestOurs(ctx, t.stream, subject); return err })
	return m, err
}

// info is Stream.Info with patience; also an error that no waiting heals, where a limit does
// not go with the layout.
func (t *tail) info(ctx context.Context) (info stream.Info, err error) {
	err = t.patiently(ctx, func() (err error) {
		edited := t.stream.Edited()
		if info, err = t.stream.Info(ctx); err == nil {
			t.edited, t.checked = edited, time.Now()
		}
		return err
	})
	if err == nil {
		err = fitsLimit(t.realm, info)
	}
	return info, err
}

// check reads the stream's settings, which tells the stream how to write; the error is
// what no waiting heals.
func (t *tail) check(ctx context.Context) error {
	_, err := t.info(ctx)
	if err == nil {
		err = t.fits()
	}
	return err
}

// recheck reads the stream's settings again if they may have changed since they were read
// last.
func (t *tail) recheck(ctx context.Context) error {
	if !t.recheckDue() {
		return nil
	}
	return t.check(ctx)
}

func (t *tail) recheckDue() bool {
	return t.edited != t.stream.Edited() || time.Since(t.checked) >= checkEvery
}

// storedMessages gives see the headers of all messages that the stream holds from a
// sequence on, up to a message of ours that was seen there; errMoved if it is there no
// more. Some may come twice, and some from before. Where reading begins anew, again is
// called before.
func (t *tail) storedMessages(ctx context.Context, from uint64, until *stream.Stored,
	see func(m *stream.Stored, id int64), again func()) error {
	f := func(m *stream.Stored) error {
		id, ok := headerInt(m, events.HeaderMessageID)
		if _, ours := resumePointOf(m); ours && ok && subjects.Covers(t.onMessages, m.Subject) {
			see(m, id)
		}
		return nil
	}
	gone := false
	return t.patiently(ctx, func() error {
		again()
		if err := t.stream.Scan(ctx, t.onMessages, stream.Start{Seq: from}, until.Seq, true, f); err != nil {
			return err
		}
		err := t.recent(ctx, until, f)
		if errors.Is(err, errMoved) && !gone { // says a deposed leader, perhaps
			gone = true
			return cmp.Or(sleep(ctx, walkPause), error(errBehind))
		}
		return err
	})
}

// recent is [recent] behind a message that was seen there; errMoved if it is there no
// more.
func (t *tail) recent(ctx context.Context, until *stream.Stored, f func(*stream.Stored) error) error {
	info, err := t.stream.Info(ctx)
	if err == nil {
		err = recent(ctx, t.stream, t.realm, info, until, f)
	}
	if errors.Is(err, errBehind) {
		if m, err := t.stream.At(ctx, until.Seq); err == nil && m == nil {
			return errMoved
		}
	}
	return err
}

// put stores one record that follows from what was read: our newest message was at that
// sequence, 0 if there was none. errMoved: it is another one now. A stop gives it a
// little time.
func (t *tail) put(ctx context.Context, e entry, in phase, newest uint64) error {
	ctx, cancel := t.graceful(ctx)
	defer cancel()
	return t.append(ctx, []entry{e}, in, &newest)
}

// add stores entries behind what is known, wherever that is by now. A stop gives them a
// little time.
func (t *tail) add(ctx context.Context, in phase, entries ...entry) error {
	ctx, cancel := t.graceful(ctx)
	defer cancel()
	return t.append(ctx, entries, in, nil)
}

// append stores entries behind what is known, settling every unclear answer by reading
// the stream (the reconcile table of the design). The entries belong to a phase: if the
// stream is found in another one, or our newest message is another than the one that they
// follow from, somebody moved on. What others write in between changes nothing.
//
// Behind a message of others a record comes first, always: it is what a start looks for
// (belowOthers).
func (t *tail) append(ctx context.Context, entries []entry, in phase, follows *uint64) error {
	return t.appendEach(ctx, entries, in, follows, nil)
}

// rest is what may follow in a write that is under way. It must not write to the stream.
type rest interface {
	more() bool    // something may
	next() []entry // if it may; nothing: it is time to see that stored which came before
}

// appendEach is append for entries that others may follow: while the first are on their
// way, rest is asked for what comes next, until there is nothing; nil: nothing. It is the
// only way by which anything of ours gets into the stream. Once rest was asked nothing can
// be sent twice, since the bytes of events are the poller's again by then: if the write
// fails, and what stands of it is known, errMoved says to ask Zulip again from there.
func (t *tail) appendEach(ctx context.Context, entries []entry, in phase, follows *uint64, rest rest) error {
	refusals, followed := 0, false
	t.maybe = false
	for wait := newRetry(); len(entries) > 0; {
		if err := t.leading(); err != nil {
			return err
		}
		if !t.cursorOK || t.cursor.Epoch != t.stream.Epoch() {
			before := t.cursor
			n, newest, err := t.settle(ctx, entries, in)
			if err != nil {
				return err
			}
			if n == 0 && t.cursor.Seq > t.maybeAt {
				t.maybe = false // its place is taken
			}
			if follows != nil && n == 0 && newest != *follows {
				return errMoved
			}
			if entries = entries[n:]; followed && len(entries) > 0 {
				return errMoved
			}
			if n > 0 || t.cursor.Seq != before.Seq {
				refusals, wait = 0, newRetry()
			}
			continue
		}
		if t.foreign != "" && !entries[0].isRecord() {
			kept, err := t.refreshEntry(in)
			if err != nil {
				return err
			}
			entries = append([]entry{kept}, entries...)
		}
		var began time.Time // when the last of them left
		var msgs []stream.Message
		sent, done := false, 0
		cursor, err := t.stream.AppendEach(ctx, t.cursor, func(stored int, at stream.Cursor) ([]stream.Message, bool) {
			if n := stored - done; n > 0 {
				t.moved(at, entries[:n], at.Seq)
				entries, done = entries[n:], stored
			}
			chunk := entries
			if sent {
				if !rest.more() {
					return nil, false
				}
				followed = true // whatever comes: the bytes of entries are not ours any more
				if chunk = rest.next(); len(chunk) == 0 {
					return nil, false
				}
				entries = append(entries, chunk...)
			}
			msgs = msgs[:0]
			for i := range chunk {
				msgs = append(msgs, chunk[i].msg)
			}
			began, sent = time.Now(), true
			return msgs, rest != nil && rest.more()
		})
		if err == nil {
			t.report.now.Counters.Writes.add(time.Since(began)) // shown with what was stored
			if len(entries) > 0 {
				t.moved(cursor, entries, cursor.Seq)
			}
			t.outage.over(t.log)
			return nil
		}
		t.cursorOK = false
		if followed {
			t.apart = time.Now().Add(apartFor)
		}
		e, _ := errors.AsType[*stream.Error](err)
		if e == nil || e.Kind == stream.Unclear {
			t.maybe, t.maybeAt = true, t.cursor.Seq
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		t.report.failed(SideNATS, err)
		switch {
		case e != nil && e.Kind == stream.TooLarge:
			// The limit was lowered since the messages were made: make them again from
			// where we are.
			if err := t.check(ctx); err != nil {
				return err
			}
			if !followed {
				return errMoved
			}
		case e != nil && e.Kind == stream.Refused:
			if others, news := t.refused.Set(fmt.Sprint(e.Kind, e.Code), e.Error()); news {
				logevent.WriteRefused.Info(t.log).Err(e).Int("others_since", others).
					Msg("NATS refused a write, because the stream had moved on: reading it again")
			}
			if refusals++; refusals < 2 {
				break
			}
			// Refused while the stream stands still: its settings may be others than we
			// think.
			t.stream.StepDown()
			t.outage.note(t.log, err, t.expires())
			if err := t.check(ctx); err != nil {
				return err
			}
		default:
			if e != nil && e.Kind == stream.Unclear {
				t.outage.unanswered(t.log)
			}
			if err := t.cannotStore(ctx, err); err != nil {
				return err
			}
		}
		if err := wait.pause(ctx); err != nil {
			return err
		}
	}
	t.outage.over(t.log) // found stored
	return nil
}

// moved takes note of entries that stand, the last of them at that sequence.
func (t *tail) moved(cursor stream.Cursor, entries []entry, seq uint64) {
	t.cursor, t.foreign = cursor, ""
	t.known, t.knownSeq = entries[len(entries)-1].after, seq
	for i := range entries {
		t.largest = max(t.largest, entries[i].message)
	}
	t.report.stored(entries, seq, cursor.Acked)
}

// settle reads the stream and says how many of the entries are there already, and where
// our newest message is. errMoved: it is not where we thought.
func (t *tail) settle(ctx context.Context, entries []entry, in phase) (stored int, newest uint64, err error) {
	p, err := t.read(ctx)
	if err != nil {
		return 0, 0, err
	}
	if t.wentBack(p) {
		return 0, 0, errMoved
	}
	stored, moved := reconcile(t.known, t.knownSeq, entries, in, p)
	if moved || stored > 0 && header(p.last, events.HeaderWriter) != t.writer {
		// Another instance's work may rest on another record, or leave out what ours does
		// not.
		return 0, 0, errMoved
	}
	if stored > 0 {
		t.moved(p.cursor, entries[:stored], p.last.Seq)
		t.foreign = p.foreign
	}
	return stored, p.seq(), nil
}

// wentBack says whether the stream holds less than what we know it held: it was restored
// from a backup, recreated or purged, or its server lost power; or a leader that was
// deposed answered, which the next write will show.
func (t *tail) wentBack(p resumePoint) bool {
	return p.seq() < t.knownSeq || p.at.Queue == t.known.Queue && p.at.Last < t.known.Last
}

// leading returns errNotLeader if there is a lease and it is over, which a process that
// was stopped for a while learns only by looking.
func (t *tail) leading() error {
	if t.lease != nil && !t.lease.Held() {
		return notLeader(t.lease)
	}
	return nil
}

// graceful gives a context that outlives ctx by stopGrace, so that a write under way at a
// stop, or when the lease is to be handed over, is settled. A lost lease has no grace.
func (t *tail) graceful(ctx context.Context) (context.Context, context.CancelFunc) {
	g, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		if cause := context.Cause(ctx); errors.Is(cause, errNotLeader) {
			cancel(cause)
			return
		}
		timer := time.AfterFunc(stopGrace, func() { cancel(context.Cause(ctx)) })
		context.AfterFunc(g, func() { timer.Stop() })
	})
	return g, func() { stop(); cancel(nil) }
}

// once says whether this has not been said yet in this term.
func (t *tail) once(what string) bool {
	_, news := t.said.Set(what, "")
	return news
}
