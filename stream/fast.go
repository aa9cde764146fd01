package stream

import (
	"bytes"
	"slices"
	"strconv"
	"strings"

	"github.com/nats-io/nuid"
)

// Fast ingest, as nats-server has it (stream.go, processJetStreamFastBatchMsg; ADR-50).
// What a message is in its batch stands in its reply subject:
//
//	<inbox>.<batch id>.<flow>.<gap mode>.<number>.<operation>.$FI
//
// The server answers the first message with how often it will acknowledge, then every so
// many messages, and the last one with a normal acknowledgement. In gap mode "fail" the
// first error or missing number ends the batch; what comes after it is not stored. That,
// with an expectation on every message, is what makes a pipeline safe: a chain of
// predicted sequences alone would go on behind the message of somebody else.
//
// The first answer is waited for. A server that does not know fast ingest would take the
// messages for single ones, one by one.
const (
	opStart  = "0"
	opAppend = "1"
	opCommit = "2"

	flowMax   = 500     // the server acknowledges at least every 500 messages
	flowBytes = 1 << 20 // or about so many bytes
	// window is how many acknowledgements may be outstanding before sending pauses. The
	// server's queue holds 100,000 messages or 128 MiB of all its clients.
	window = 8
	// labelled is how many messages get their reply subjects and sequences in one go.
	labelled = 256
)

// fast stores all that the source gives behind at, which is acknowledged, on a dedicated
// stream: one batch, so the server always has something to do while the next chunk is
// made. stored are those that came before.
//
// The last message of a chunk is held back until it is known whether another follows, for
// the last of all commits the batch. There is an operation that does so and stores
// nothing; but subscribers that are no consumers of the stream see it, as an empty message.
//
// It ends before a chunk of much larger messages too: of these fewer may be on their way,
// and how many is said when a batch begins. What is left is in f.msgs.
func (f *appendOp) fast(stored int, at Cursor) (end Cursor, n int, err error) {
	b := f.newFastBatch(at.Seq, f.msgs)
	commit := func(msgs []Message) (Cursor, int, error) {
		if len(msgs) == 1 && b.sent == 0 {
			end, err := f.single(at, at.Seq, &msgs[0])
			return end, 1, err
		}
		if done, err := b.chunk(msgs, true); done {
			return at, 0, b.early(err)
		}
		return Cursor{Seq: at.Seq + b.sent, Acked: true}, int(b.sent), b.wait()
	}
	for f.more {
		if done, err := b.chunk(f.take(len(f.msgs)-1), false); done {
			return at, 0, b.early(err)
		}
		last := f.take(1)[0]
		held := Message{Subject: last.Subject, Headers: slices.Clone(last.Headers), Data: bytes.Clone(last.Data)}
		some, err := f.load(stored+int(b.acked), Cursor{Seq: b.after + b.acked, Acked: true, Epoch: at.Epoch})
		switch {
		case err != nil:
			return at, 0, err
		case !some || flowOf(f.msgs) < b.flow/2:
			return commit([]Message{held})
		}
		if done, err := b.chunk([]Message{held}, false); done {
			return at, 0, b.early(err)
		}
	}
	return commit(f.take(len(f.msgs)))
}

// fastBatch is one batch of fast ingest under way.
type fastBatch struct {
	*appendOp
	id     string
	prefix string // of the reply subjects: inbox and batch id
	middle string // flow and gap mode
	after  uint64 // the sequence behind which the batch goes
	flow   int
	window uint64

	started bool
	sent    uint64
	acked   uint64
	refusal error // what ended the batch; the acknowledgement of what was stored before may still come

	labels     string
	labelEnds  [labelled][2]int
	labelBytes []byte
}

// flowOf is after how many messages of their size an answer is asked for.
func flowOf(msgs []Message) int {
	size := 0
	for i := range msgs {
		size += len(msgs[i].Data)
	}
	return min(max(flowBytes/(size/len(msgs)+1), 1), flowMax)
}

// newFastBatch begins a batch whose messages are about as large as the first of them.
func (f *appendOp) newFastBatch(after uint64, first []Message) *fastBatch {
	flow := flowOf(first)
	id := nuid.Next()
	return &fastBatch{
		appendOp: f,
		id:       id,
		prefix:   f.out.inbox + "." + id + ".",
		middle:   strconv.Itoa(flow) + ".fail.",
		after:    after,
		flow:     flow,
		window:   uint64(window * flow),
	}
}

// chunk sends some messages; commit: they are the last. It returns true when the batch is
// over before that.
func (b *fastBatch) chunk(msgs []Message, commit bool) (done bool, err error) {
	for n := range msgs {
		if n%labelled == 0 {
			b.label(msgs[n:min(n+labelled, len(msgs))], commit && n+labelled >= len(msgs))
		}
		if err := b.send(&msgs[n], n%labelled); err != nil {
			return true, err
		}
		if commit && n == len(msgs)-1 {
			break
		}
		if b.sent == 1 || b.sent-b.acked > b.window {
			// Wait for the first answer, or for room in the window.
			b.startTimer()
			for !b.started || b.sent-b.acked > b.window {
				if done, err := b.step(); done {
					return true, err
				}
			}
		}
		if len(b.out.answers) > 0 {
			b.startTimer()
			if done, err := b.step(); done {
				return true, err
			}
		}
		if n%64 == 63 || n == len(msgs)-1 {
			if err := b.trouble(); err != nil {
				return true, err
			}
		}
	}
	return false, nil
}

// send publishes a message under a label that was written.
func (b *fastBatch) send(m *Message, at int) error {
	start := 0
	if at > 0 {
		start = b.labelEnds[at-1][1]
	}
	w := &b.out
	w.load(m, Header{headerLastSeq, b.labels[b.labelEnds[at][0]:b.labelEnds[at][1]]})
	w.msg.Reply = b.labels[start:b.labelEnds[at][0]]
	b.sent++
	return b.publish()
}

// label writes the reply subjects and expected sequences of the next messages into one
// string, which they then share: two allocations for 256 messages. commit: the last of
// them is that of the batch.
func (b *fastBatch) label(msgs []Message, commit bool) {
	buf := b.labelBytes[:0]
	for i := range msgs {
		number := b.sent + uint64(i) + 1
		op := opAppend
		switch {
		case number == 1:
			op = opStart
		case commit && i == len(msgs)-1:
			op = opCommit
		}
		buf = append(buf, b.prefix...)
		buf = append(buf, b.middle...)
		buf = strconv.AppendUint(buf, number, 10)
		buf = append(buf, '.')
		buf = append(buf, op...)
		buf = append(buf, ".$FI"...)
		b.labelEnds[i][0] = len(buf)
		buf = strconv.AppendUint(buf, b.after+number-1, 10)
		b.labelEnds[i][1] = len(buf)
	}
	b.labelBytes, b.labels = buf, string(buf)
}

// wait waits for the acknowledgement of all.
func (b *fastBatch) wait() error {
	b.startTimer()
	for {
		if done, err := b.step(); done || err != nil {
			return err
		}
	}
}

// early is the error for a batch that ended before all was sent.
func (b *fastBatch) early(err error) error {
	if err == nil {
		err = errorf(Unclear, "%s: the server ended the batch with %d of %d messages acknowledged", b.what, b.acked, b.sent)
	}
	return err
}

// step takes one answer. It returns true when the batch is over: stored whole if the
// error is nil.
func (b *fastBatch) step() (bool, error) {
	msg, err := b.next()
	if err != nil {
		if b.refusal != nil {
			err = b.refusal // the acknowledgement of the rest did not come, which changes nothing
		}
		return true, err
	}
	if !strings.HasPrefix(msg.Subject, b.prefix) {
		return false, nil // a late answer to a write that was given up
	}
	a, err := b.parse(msg)
	if err != nil {
		return true, err
	}
	b.startTimer() // it is the silence that counts
	switch {
	case a.Type == "ack":
		b.started = true
		b.acked = max(b.acked, a.Seq)
		return false, nil
	case a.Type == "err" && a.Error != nil:
		if b.refusal == nil {
			b.refusal = b.refused(a.Error)
		}
		return false, nil
	case a.Type == "gap":
		if b.refusal == nil {
			b.refusal = errorf(Unclear, "%s: message %d of a batch did not reach the server; those before it "+
				"are stored", b.what, a.LastSeq)
		}
		return false, nil
	case a.Error != nil:
		// The first message was refused, or one came after the end of the batch: no
		// acknowledgement follows.
		if b.refusal == nil {
			b.refusal = b.refused(a.Error)
		}
		return true, b.refusal
	}
	at, err := b.acknowledged(&a)
	switch {
	case b.refusal != nil:
		return true, b.refusal
	case err != nil:
		return true, err
	case a.Batch != b.id:
		b.change(func(s *settings) { s.fast = false })
		return true, errorf(Unclear, "%s: the server does not know fast ingest; the next writes go by "+
			"another path", b.what)
	case a.Count != b.sent || at.Seq != b.after+a.Count:
		return true, errorf(Unclear, "%s: %d of %d messages are stored, up to sequence %d", b.what, a.Count,
			b.sent, at.Seq)
	}
	return true, nil
}
