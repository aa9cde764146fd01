package stream

import (
	"strconv"

	"github.com/nats-io/nuid"
)

// progressBytes is how much of an atomic batch goes between two messages that ask for an
// answer. The server answers them when it has staged them, so a slow line is told from a
// dead one. The first message always asks: a batch that cannot be opened is refused there
// and nowhere else.
const progressBytes = 256 << 10

// atomic stores two or more messages behind at, which is acknowledged: all or none
// (ADR-50; nats-server, stream.go, processJetStreamAtomicBatchMsg). The expectation
// stands on the first message only, for the server lets nothing in between.
func (f *appendOp) atomic(at Cursor, msgs []Message, set settings) (Cursor, error) {
	w := &f.out
	id := nuid.Next()
	w.token++
	reply := w.inbox + "." + strconv.FormatUint(w.token, 36)
	size := 0
	var room [6]Header // for what a write adds
	f.startTimer()
	for i := range msgs {
		added := append(room[:0], Header{headerBatchID, id}, Header{headerBatchSeq, batchNumbers[i+1]})
		if i == 0 {
			added = append(added, f.expect(at, at.Seq, set)...)
		}
		if i == len(msgs)-1 {
			added = append(added, Header{headerCommit, "1"})
		}
		w.load(&msgs[i], added...)
		size += len(msgs[i].Data)
		switch {
		case i == len(msgs)-1:
			w.msg.Reply = reply
		case i == 0 || size >= progressBytes:
			size = 0
			w.msg.Reply = reply + ".progress"
		}
		if err := f.publish(); err != nil {
			return at, err
		}
		if i%64 == 63 {
			if err := f.trouble(); err != nil {
				return at, err
			}
		}
	}
	f.startTimer()
	for {
		msg, err := f.next()
		if err != nil {
			return at, err
		}
		if msg.Subject != reply && msg.Subject != reply+".progress" {
			continue // a late answer to a write that was given up
		}
		a, err := f.parse(msg)
		if err != nil {
			return at, err
		}
		f.startTimer()
		if a.Error != nil {
			return at, f.refused(a.Error)
		}
		if msg.Subject != reply {
			continue
		}
		next, err := f.acknowledged(&a)
		if err != nil {
			return at, err
		}
		if a.Batch != id || a.Count != uint64(len(msgs)) {
			return at, errorf(Unclear, "%s: a batch of %d messages was acknowledged as %d", f.what, len(msgs), a.Count)
		}
		return next, nil
	}
}

// batchNumbers are the numbers of the messages in a batch, ready-made.
var batchNumbers = func() (numbers [batchMax + 1]string) {
	for i := range numbers {
		numbers[i] = strconv.Itoa(i)
	}
	return numbers
}()
