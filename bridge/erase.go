package bridge

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"zulip-nats/events"
	"zulip-nats/health"
	"zulip-nats/logevent"
	"zulip-nats/stream"
	"zulip-nats/subjects"
)

// Erasing (design, section 11): a delete_message event makes the bridge overwrite what the
// stream and the object store hold of that message. What the world looks like if the power
// fails at each arrow:
//
//	delete_message stored ──► copies found ──► erased record ──► copies erased ──► done record
//	    │                         │                 │                 │                │
//	    │                         │                 │                 │                └ the next start begins behind it.
//	    │                         │                 │                 └ nothing is found any more: the done record is written.
//	    │                         │                 └ some may be erased. What is left is found again and named again.
//	    │                         └ nothing has happened.
//	    └ the event is in the stream, above what the newest erased record says is done: it is found there.
//
// The position does not depend on any of it: the delete_message event is stored, and
// acknowledged, like every other, and nothing is waited for. What is erased always lies
// below a record of ours that was acknowledged before, so the newest message, from which a
// start goes on, is never touched, and neither is what a write has to follow.

const (
	// eraseTurn is how long erasing may hold up events at a time, but for the request that
	// is under way then.
	eraseTurn = 5 * time.Second
	// erasePauseMin and erasePauseMax are between two tries where the server does not
	// carry it out.
	erasePauseMin = time.Second
	erasePauseMax = time.Minute
	// eraseSilent is the pause from which on it is said that it fails, where that may pass
	// by itself: the third time in a row.
	eraseSilent = 4 * time.Second
	// erasePauseYoung is the pause where an object is too young, see errYoung.
	erasePauseYoung = 5 * time.Second
	// eraseMost is how many messages of the stream one record names at most.
	eraseMost = 500
	// eraseSlice is how many sequences are read at a time, to know what they are about.
	// Where no consumer may be made, each of their messages is a request.
	eraseSlice = 5_000
)

// errYoung says that an object has just been stored: a leader of the object store that was
// deposed may say that there is none, and it would stay. No read of the stream says more of
// it, so that is waited out.
var errYoung = errors.New("an object is too young to be erased")

// erasing is what this process knows of what is to be erased.
type erasing struct {
	due   bool      // there may be something to do
	after time.Time // not before
	pause time.Duration

	known bool   // upTo was read in this term, or found out since
	ended int    // of what the newest record names, how many are gone, until upTo is known
	upTo  uint64 // of all delete_message events up to there, what they named is erased

	index *erasable        // nil: to be read anew
	wrong health.Condition // the server does not carry it out
}

// eraseAgain lets it be looked for what is to be erased, as after every read of the
// stream: another instance may have stored something, or the stream may be another one.
func (b *Bridge) eraseAgain() {
	b.erasing.due, b.erasing.known, b.erasing.ended = b.cfg.EraseDeleted, false, 0
}

// erase does what is due of it, for a while. What the server does not carry out is told,
// and tried again later: no event waits for it. The error is what ends or begins anew any
// other step.
func (b *Bridge) erase(ctx context.Context) error {
	e := &b.erasing
	if !b.cfg.EraseDeleted || !e.due || time.Now().Before(e.after) {
		return nil
	}
	done, err := b.eraseFor(ctx, time.Now().Add(eraseTurn))
	if err == nil {
		e.due, e.pause = !done, 0
		if was, set := e.wrong.Clear(); set {
			logevent.ErasingAgain.Info(b.log).Stringer("after", time.Since(was.Since).Round(time.Millisecond)).
				Msg("deleted messages are erased again")
		}
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.Is(err, errMoved) || errors.Is(err, errNotLeader) || mustEnd(err) {
		return err
	}
	if errors.Is(err, errYoung) {
		e.after = time.Now().Add(erasePauseYoung)
		return nil
	}
	e.known = false // an object may be gone whose stub is left, and only the newest record says so
	b.report.failed(SideErasing, err)
	e.pause = min(max(2*e.pause, erasePauseMin), erasePauseMax)
	e.after = time.Now().Add(e.pause)
	reason, lasts := err.Error(), true
	if trouble, ok := errors.AsType[*stream.Error](err); ok {
		reason = fmt.Sprint(trouble.Kind, trouble.Code)
		lasts = trouble.Kind == stream.Forbidden || trouble.Kind == stream.Wrong
	}
	if !lasts && e.pause < eraseSilent {
		return nil // a connection that was lost, a leader that was deposed: mostly it is over by then
	}
	if _, news := e.wrong.Set(reason, err.Error()); news {
		logevent.ErasingFails.Error(b.log).Err(err).
			Msg("what was deleted at Zulip cannot be erased now: it stays in the stream, and is tried again; events " +
				"are stored as usual")
	}
	return nil
}

// deletion is what one delete_message event names.
type deletion struct {
	seq uint64
	ids []int64
}

// eraseFor erases until then, or until all is done.
func (b *Bridge) eraseFor(ctx context.Context, until time.Time) (done bool, err error) {
	e := &b.erasing
	epoch := b.stream.Epoch()
	newest, err := b.ourNewest(ctx)
	if err != nil {
		return false, err
	}
	if !e.known {
		if err := b.resumeErasing(ctx, epoch, newest, until); err != nil || !e.known {
			return false, behindIf(err)
		}
	}
	deletions, err := b.deletions(ctx, e.upTo+1, newest, func() bool { return false })
	if err != nil {
		return false, behindIf(err)
	}
	if len(deletions) == 0 {
		e.upTo = newest.Seq
		return true, nil
	}
	if ready, err := b.indexUpTo(ctx, newest, until); err != nil || !ready {
		return false, behindIf(err)
	}
	// Each turn comes further, however long the reading took.
	for first := true; len(deletions) > 0; first = false {
		if !first && time.Now().After(until) {
			return false, nil
		}
		// As many as one record names, mostly.
		ids, n := map[int64]bool{}, 0
		for ; n < len(deletions) && (n == 0 || len(ids)+len(deletions[n].ids) <= eraseMost); n++ {
			for _, id := range deletions[n].ids {
				ids[id] = true
			}
		}
		upTo := deletions[n-1].seq
		if deletions = deletions[n:]; len(deletions) == 0 {
			upTo = newest.Seq
		}
		if done, err := b.eraseMessages(ctx, epoch, ids, until); err != nil || !done {
			return false, err
		}
		if err := b.recordErased(ctx, events.Erased{DoneUpTo: upTo}); err != nil {
			return false, err
		}
		e.upTo = upTo
	}
	return true, nil
}

// ourNewest is the newest message that we stored; errBehind where it is not there.
func (b *Bridge) ourNewest(ctx context.Context) (*stream.Stored, error) {
	m, err := b.stream.At(ctx, b.knownSeq)
	if err == nil && m == nil {
		err = errBehind
	}
	return m, err
}

// resumeErasing reads how far the erasing is, and ends what another process, or this one,
// had begun: what the newest record names. Among that may be a stub whose object is erased,
// of which nothing else says any more what it was about. It is not known yet if the time
// was over before.
func (b *Bridge) resumeErasing(ctx context.Context, epoch uint64, newest *stream.Stored, until time.Time) error {
	subject := b.realm.Record(subjects.Erased)
	m, err := newestOurs(ctx, b.stream, subject)
	if err != nil {
		return err
	}
	from := uint64(1)
	if m != nil {
		from = m.Seq + 1
	}
	err = b.lacking(ctx, from, newest, func(map[uint64]bool) {}, func(newer *stream.Stored) error {
		if _, ours := resumePointOf(newer); ours {
			m = newer
		}
		return nil
	}, subject)
	if err != nil {
		return err
	}
	r := decode[events.Erased](m)
	if r == nil {
		r = &events.Erased{}
	}
	e := &b.erasing
	for began := e.ended; e.ended < len(r.Seqs); e.ended++ {
		if e.ended > began && time.Now().After(until) {
			return nil
		}
		left, err := b.stream.At(ctx, r.Seqs[e.ended])
		if err != nil {
			return err
		}
		if left == nil || !mayGo(left) {
			continue
		}
		d := doomedOf(b.realm, left, 0)
		if err := b.old(ctx, left, newest, d.object); err != nil {
			return err
		}
		if err := b.eraseOne(ctx, epoch, d); err != nil {
			return err
		}
	}
	e.known, e.ended, e.upTo = true, 0, r.DoneUpTo
	return nil
}

// mustEnd says whether an error is one that no waiting heals, and that ends the process.
func mustEnd(err error) bool {
	settings, _ := errors.AsType[*stream.ConfigError](err)
	_, ours := errors.AsType[*ConfigError](err)
	return ours || settings != nil && settings.Stream != ""
}

// behindIf makes an error that may pass of one that says that a message of ours is not
// there any more, which was the newest: the limits took it, or a deposed leader says so.
func behindIf(err error) error {
	if errors.Is(err, errMoved) {
		return errBehind
	}
	return err
}

// deletions reads what the delete_message events between a sequence and a message that was
// seen there name; errMoved if that is there no more. pass says whether one whose bytes
// cannot be had is passed over.
func (b *Bridge) deletions(ctx context.Context, from uint64, until *stream.Stored, pass func() bool) (list []deletion,
	err error) {
	if from > until.Seq {
		return nil, nil
	}
	subject := b.realm.Type("delete_message")
	seen := map[uint64]bool{}
	f := func(m *stream.Stored) error {
		seen[m.Seq] = true
		if _, ours := resumePointOf(m); !ours || header(m, events.HeaderRecord) != "" {
			return nil
		}
		data, err := b.bytesOf(ctx, m, until)
		if err != nil && !pass() {
			return err
		}
		var body events.DeleteMessage
		if json.Unmarshal(data, &body) == nil {
			list = append(list, deletion{m.Seq, body.IDs()})
		}
		return nil
	}
	if err := b.stream.Scan(ctx, subject, stream.Start{Seq: from}, until.Seq, false, f); err != nil {
		return nil, err
	}
	known := func(seqs map[uint64]bool) {
		for seq := range seen {
			delete(seqs, seq)
		}
	}
	if err := b.lacking(ctx, from, until, known, f, subject); err != nil {
		return list, err
	}
	slices.SortFunc(list, func(a, b deletion) int { return cmp.Compare(a.seq, b.seq) })
	return list, nil
}

// lacking gives f those messages on subjects that a deposed leader may have lacked when
// they were read: of the newest from a sequence on, up to a message that was seen there,
// all but those that known takes out; errMoved if that message is there no more.
func (b *Bridge) lacking(ctx context.Context, from uint64, until *stream.Stored, known func(map[uint64]bool),
	f func(*stream.Stored) error, on ...string) error {
	seqs := map[uint64]bool{}
	err := b.recent(ctx, until, func(m *stream.Stored) error {
		covers := func(filter string) bool { return subjects.Covers(filter, m.Subject) }
		if m.Seq >= from && m.Seq <= until.Seq && slices.ContainsFunc(on, covers) {
			seqs[m.Seq] = true
		}
		return nil
	})
	if err != nil {
		return err
	}
	known(seqs)
	for _, seq := range slices.Sorted(maps.Keys(seqs)) {
		m, err := b.stream.At(ctx, seq)
		if err != nil {
			return err
		}
		if m == nil {
			return errBehind // it was there just now
		}
		if err := f(m); err != nil {
			return err
		}
	}
	return nil
}

// bytesOf is the bytes of an event, of a stub those of its object; nil where that is there
// no more, or is none of ours.
func (b *Bridge) bytesOf(ctx context.Context, m, newest *stream.Stored) ([]byte, error) {
	name := header(m, events.HeaderObject)
	if name == "" {
		return m.Data, nil
	}
	if !strings.HasPrefix(name, b.realm.String()+"/") {
		return nil, nil
	}
	data, err := b.stream.Object(ctx, name)
	if err == nil && data == nil {
		err = b.old(ctx, m, newest, name)
	}
	return data, err
}

// old says errYoung if a message with an object was stored so shortly before another that a
// deposed leader may not have the object. With one server there is none.
func (b *Bridge) old(ctx context.Context, m, newest *stream.Stored, object string) error {
	if object == "" || newest.Time.Sub(m.Time) > recentTime {
		return nil
	}
	info, err := b.stream.Info(ctx)
	if err == nil && info.Replicas > 1 {
		err = errYoung
	}
	return err
}

// indexUpTo reads what the index does not know yet of the stream, up to a message of ours
// that was seen there. ready is false if the time was over before.
func (b *Bridge) indexUpTo(ctx context.Context, newest *stream.Stored, until time.Time) (ready bool, err error) {
	e := &b.erasing
	if x := e.index; x != nil {
		m, err := b.stream.At(ctx, x.seen)
		if err != nil {
			return false, err
		}
		if m == nil || !m.Time.Equal(x.seenAt) {
			e.index = nil
		}
	}
	if e.index == nil {
		e.index = &erasable{}
	}
	x := e.index
	info, err := b.stream.Info(ctx)
	if err != nil {
		return false, err
	}
	x.forget(info.FirstSeq)
	var on []string
	for _, kind := range erasedTypes {
		on = append(on, b.realm.Type(kind))
	}
	on = append(on, b.realm.Record(subjects.Rejected))
	f := func(m *stream.Stored) error {
		id, ok, err := about(m, func() ([]byte, error) { return b.bytesOf(ctx, m, newest) })
		if ok {
			x.add(id, m.Seq)
		}
		return err
	}
	began := max(x.upTo+1, info.FirstSeq)
	lowest := newest.Seq // of what the server that answers may lack
	if began <= newest.Seq {
		err := b.recent(ctx, newest, func(m *stream.Stored) error {
			lowest = min(lowest, m.Seq)
			return nil
		})
		if err != nil {
			return false, err
		}
	}
	for from := began; from <= newest.Seq; from = x.upTo + 1 {
		if from > began && time.Now().After(until) {
			return false, nil
		}
		to := min(from+eraseSlice-1, newest.Seq)
		had := len(x.ids)
		err := b.indexSlice(ctx, on, from, to, lowest, newest, f)
		if err != nil {
			x.ids, x.seqs = x.ids[:had], x.seqs[:had] // they come again
			return false, err
		}
		if x.upTo = to; x.seen < from {
			x.seen, x.seenAt = newest.Seq, newest.Time
		}
	}
	return true, nil
}

// indexSlice gives f the messages on these subjects between two sequences, also those that
// the server that answers lacks, which are none below the lowest: none of them is looked
// for again later.
func (b *Bridge) indexSlice(ctx context.Context, on []string, from, to, lowest uint64, newest *stream.Stored,
	f func(*stream.Stored) error) error {
	x := b.erasing.index
	had := len(x.seqs)
	for _, subject := range on {
		headersOnly := subject == b.onMessages
		if err := b.stream.Scan(ctx, subject, stream.Start{Seq: from}, to, headersOnly, f); err != nil {
			return err
		}
	}
	if to < lowest {
		return nil
	}
	return b.lacking(ctx, from, newest, func(seqs map[uint64]bool) {
		for _, seq := range x.seqs[had:] {
			delete(seqs, seq)
		}
		maps.DeleteFunc(seqs, func(seq uint64, _ bool) bool { return seq > to }) // the next slices
	}, f, on...)
}

// doomed is a message of the stream that is to be erased.
type doomed struct {
	seq    uint64
	id     int64 // of the message that it is about
	queue  string
	event  int64  // -1: none
	object string // "": none
}

// eraseMessages erases all that the stream holds of messages with these ids, as far as the
// index knows. done is false if the time was over before.
func (b *Bridge) eraseMessages(ctx context.Context, epoch uint64, ids map[int64]bool, until time.Time) (done bool,
	err error) {
	seqs := b.erasing.index.find(ids)
	for len(seqs) > 0 {
		newest, err := b.ourNewest(ctx)
		if err != nil {
			return false, err
		}
		var list []doomed
		missing := map[uint64]bool{}
		n := 0
		for ; n < len(seqs) && len(list) < eraseMost && (n == 0 || time.Now().Before(until)); n++ {
			m, err := b.stream.At(ctx, seqs[n])
			if err != nil {
				return false, err
			}
			if m == nil {
				missing[seqs[n]] = true
				continue
			}
			id, ok, err := about(m, func() ([]byte, error) { return b.bytesOf(ctx, m, newest) })
			if err != nil {
				return false, err
			}
			if !ok || !ids[id] {
				continue
			}
			d := doomedOf(b.realm, m, id)
			if err := b.old(ctx, m, newest, d.object); err != nil {
				return false, err
			}
			list = append(list, d)
		}
		if err := b.trulyGone(ctx, missing, newest); err != nil {
			return false, behindIf(err)
		}
		seqs = seqs[n:]
		for len(list) > 0 {
			if n, err = b.eraseNamed(ctx, epoch, list, until); err != nil {
				return false, err
			}
			if list = list[n:]; len(list) > 0 && time.Now().After(until) {
				return false, nil // what is left is found and named again
			}
		}
		if len(seqs) > 0 && time.Now().After(until) {
			return false, nil
		}
	}
	return true, nil
}

// trulyGone says errBehind if a message that a read did not find is there all the same: a
// deposed leader lacks the newest.
func (b *Bridge) trulyGone(ctx context.Context, missing map[uint64]bool, newest *stream.Stored) error {
	if len(missing) == 0 {
		return nil
	}
	there := false
	err := b.recent(ctx, newest, func(m *stream.Stored) error {
		there = there || missing[m.Seq]
		return nil
	})
	if err == nil && there {
		err = errBehind
	}
	return err
}

// doomedOf says what has to be erased with a message of the stream that is about that
// message of Zulip's.
func doomedOf(realm subjects.Realm, m *stream.Stored, id int64) doomed {
	d := doomed{seq: m.Seq, id: id, queue: header(m, events.HeaderQueueID), event: -1,
		object: header(m, events.HeaderObject)}
	if n, has := headerInt(m, events.HeaderEventID); has {
		d.event = n
	}
	if header(m, events.HeaderRecord) == events.RecordRejected {
		// The object store may have taken it all the same, after it was given up.
		d.object = objectName(realm, d.queue, itoa(d.event))
	}
	if !strings.HasPrefix(d.object, realm.String()+"/") {
		d.object = ""
	}
	return d
}

// eraseNamed writes the record that names what is to be erased, as much as fits, and
// erases that, or a part of it if the time is over. It returns how many of the list it did.
func (b *Bridge) eraseNamed(ctx context.Context, epoch uint64, list []doomed, until time.Time) (n int, err error) {
	for n = len(list); ; n = (n + 1) / 2 {
		e, err := b.erasedEntry(erasedBody(list[:n], b.erasing.upTo))
		if err != nil {
			return 0, err
		}
		if n > 1 && !b.stream.Fits(&e.msg) {
			continue
		}
		if err := b.add(ctx, phasePoll, e); err != nil {
			return 0, err
		}
		break
	}
	// From here on the newest message is a record that does not go. If the power fails,
	// what is left is found again.
	gone := map[int64]bool{}
	for i, d := range list[:n] {
		if i > 0 && time.Now().After(until) {
			n = i
			break
		}
		if err := b.eraseOne(ctx, epoch, d); err != nil {
			return 0, err
		}
		gone[d.id] = true
	}
	b.report.now.Counters.Erased += uint64(len(gone))
	b.report.show()
	logevent.MessagesErased.Info(b.log).Int("messages", len(gone)).Int("in_the_stream", n).
		Msg("what was deleted at Zulip is erased")
	return n, nil
}

// eraseOne erases one message of the stream that a record names.
func (b *Bridge) eraseOne(ctx context.Context, epoch uint64, d doomed) error {
	if err := b.leading(); err != nil {
		return err
	}
	if d.object != "" { // first: only the stub knows its name
		if err := b.stream.EraseObject(ctx, epoch, d.object); err != nil {
			return err
		}
	}
	return b.stream.Erase(ctx, epoch, d.seq)
}

// erasedBody names what is about to be erased.
func erasedBody(list []doomed, doneUpTo uint64) events.Erased {
	body := events.Erased{DoneUpTo: doneUpTo}
	queues := map[string]int{}
	for _, d := range list {
		body.Seqs = append(body.Seqs, d.seq)
		if !slices.Contains(body.Messages, d.id) {
			body.Messages = append(body.Messages, d.id)
		}
		if d.event < 0 {
			continue
		}
		i, has := queues[d.queue]
		if !has {
			i = len(body.Events)
			queues[d.queue] = i
			body.Events = append(body.Events, events.ErasedEvents{QueueID: d.queue})
		}
		body.Events[i].IDs = append(body.Events[i].IDs, d.event)
	}
	return body
}

func (b *Bridge) erasedEntry(body events.Erased) (entry, error) {
	body.Record = events.RecordErased
	return b.recordEntry(events.RecordErased, subjects.Erased, b.known, body)
}

func (b *Bridge) recordErased(ctx context.Context, body events.Erased) error {
	e, err := b.erasedEntry(body)
	if err != nil {
		return err
	}
	return b.add(ctx, phasePoll, e)
}

// toldDeleted reads which messages the delete_message events name that the stream holds
// between a sequence and a message that was seen there: these do not come back, by no
// other queue and from no history. Nil unless what is deleted is to be erased. errMoved:
// that message is there no more, and these are what is left. A large event whose bytes
// cannot be had is waited for no longer than erasing may hold up events: without it a
// message may come back that was deleted.
func (b *Bridge) toldDeleted(ctx context.Context, from uint64, until *stream.Stored) (map[int64]bool, error) {
	if !b.cfg.EraseDeleted {
		return nil, nil
	}
	var list []deletion
	gone, began := false, time.Now()
	pass := func() bool { return time.Since(began) > eraseTurn }
	err := b.patiently(ctx, func() (err error) {
		list, err = b.deletions(ctx, from, until, pass)
		if errors.Is(err, errMoved) && !gone { // says a deposed leader, perhaps
			gone = true
			return cmp.Or(sleep(ctx, walkPause), error(errBehind))
		}
		return err
	})
	ids := map[int64]bool{}
	for _, d := range list {
		for _, id := range d.ids {
			ids[id] = true
		}
	}
	return ids, err
}
