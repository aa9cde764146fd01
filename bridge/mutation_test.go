package bridge_test

import (
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var runMutations = flag.Bool("mutations", false, "break each rule in a copy of the sources, and see that the suite notices")

// mutation breaks one rule of the design in one place. The suite must fail on it: so we
// know that it can.
type mutation struct {
	rule     string // what is broken
	file     string // from the module's root
	old, new string // old stands exactly once in file
	suite    string // arguments of go test
}

const simulation = "./bridge -run TestSimulation -failfast -timeout 5m -seeds 4000"

var mutations = []mutation{
	{"rule 1: what is stored is acknowledged, and nothing else", "bridge/store.go",
		"			err = cmp.Or(b.appendEach(ctx, entries, phasePoll, nil, w), w.err)\n",
		"			if len(entries) > 0 {\n				b.known = entries[len(entries)-1].after\n			}\n			if err = b.appendEach(ctx, entries, phasePoll, nil, w); errors.Is(err, errMoved) {\n				err = nil\n			}\n			err = cmp.Or(err, w.err)\n", simulation},
	{"rule 2: nothing is passed over without a record", "bridge/store.go",
		"		entries = append(entries, e)\n		if last",
		"		if e.msg.Headers[1].Value == \"skipped\" {\n			at = e.after\n			continue\n		}\n		entries = append(entries, e)\n		if last", simulation},
	{"rule 3: the first write after a read names the message read, not the sequence that INFO tells", "bridge/tail.go",
		"\t\t\tt.cursor, t.cursorOK, t.foreign = p.cursor, true, p.foreign\n",
		"\t\t\tt.cursor, t.cursorOK, t.foreign = p.cursor, true, p.foreign\n\t\t\tif info, err := t.stream.Info(ctx); err == nil {\n\t\t\t\tt.cursor = stream.Cursor{Seq: info.LastSeq, Acked: true, Epoch: p.cursor.Epoch}\n\t\t\t}\n", simulation},
	{"rule 4: an unclear answer is settled by reading", "bridge/tail.go",
		"\t\tdefault:\n\t\t\tif e != nil && e.Kind == stream.Unclear {\n",
		"\t\tcase e != nil && e.Kind == stream.Unclear:\n\t\t\tt.known = entries[len(entries)-1].after\n\t\t\treturn nil\n\t\tdefault:\n\t\t\tif e != nil && e.Kind == stream.Unclear {\n", simulation},
	{"settle: what was stored is found again", "bridge/reconcile.go",
		"\t\t\treturn i + 1, false\n", "\t\t\treturn 0, false\n", simulation},
	{"settle: a record of another instance at the same position counts", "bridge/reconcile.go",
		" || p.last != nil && p.last.Seq > knownSeq\n", "\n", "./bridge -run TestSettle"},
	{"9.1: the phase is read off the newest message", "bridge/resume.go",
		"		p.phase = phaseRefill\n", "		p.phase = phasePoll\n", simulation},
	{"9.1: polling starts at -1, not at register's last_event_id", "bridge/queues.go",
		"e, err := b.queueEntry(r, -1, next)\n", "e, err := b.queueEntry(r, 0, next)\n", by("TestChainOfEvents|TestGapIsRefilled")},
	{"9.3: a gap is opened by a write, not by one refusal believed", "bridge/lost.go",
		"	if err := b.put(ctx, e, p.phase, p.seq()); err != nil {\n		return err\n	}\n	b.losses++\n",
		"	_ = b.put(ctx, e, p.phase, p.seq())\n	b.losses++\n", simulation},
	{"9.3: the stream is read before a queue is given up", "bridge/lost.go",
		"	if p.phase != phasePoll || p.at != b.known || p.seq() != b.knownSeq {\n		return false, errMoved\n	}\n", "", simulation},
	{"9.3: a stream that went back is noticed", "bridge/tail.go",
		"\treturn p.seq() < t.knownSeq || p.at.Queue == t.known.Queue && p.at.Last < t.known.Last\n", "\treturn false\n", "./bridge -run TestTailLost"},
	{"9.4: the largest id is no watermark", "bridge/plan.go",
		"m.sent <= newest-commitTime && m.id > bound", "m.sent <= newest && m.id > bound", "./bridge -run TestLateMessageIsRefilled"},
	{"9.4: what Zulip has at a start is not taken for stored", "bridge/follow.go",
		"	r.Newest = events.MessageIDs{Own: grow(r.Newest.Own), Public: grow(r.Newest.Public)}\n",
		"	_ = grow\n	r.Newest, _ = b.askNewest(context.Background(), b.poller.Options, r.Life())\n	r.Begin = &events.Beginning{Newest: r.Newest}\n", simulation},
	{"9.4: a refill passes over what the stream holds", "bridge/refill.go",
		"		case held[m.id]:\n", "		case false:\n", simulation},
	{"5: a live message that was refilled is skipped", "bridge/held.go",
		"return b.mayHold(id) && b.held.has(id)", "return false && b.held.has(id)", "./bridge -run TestEncode"},
	{"5: a new queue is recorded before its first poll", "bridge/queues.go",
		"	switch err := b.put(ctx, e, in, b.knownSeq); {\n	case err == nil:\n",
		"	at := poller.Position{Queue: r.QueueID, Last: -1}\n	if batch, err := b.poller.Next(ctx, at); err == nil && len(batch.Events) > 0 {\n		at.Last = batch.Events[len(batch.Events)-1].ID\n		_, _ = b.poller.Next(ctx, at)\n	}\n	switch err := b.put(ctx, e, in, b.knownSeq); {\n	case err == nil:\n", simulation},
	{"9.6: the old queue is read once more behind the register of the new one", "bridge/changeover.go",
		"		_, err := b.store(ctx, batch, false)\n		return err\n", "		return nil\n", simulation},
	{"7: another instance's record replaces what is remembered", "bridge/bridge.go",
		"(p.seq() != b.knownSeq || header(p.last, events.HeaderWriter) != b.writer) {", "p.seq() != b.knownSeq {", "./bridge -run TestWhatIsRememberedOfARecord"},
	{"7: and what a deposed leader told, another read", "bridge/bridge.go",
		"(p.seq() != b.knownSeq || header(p.last, events.HeaderWriter) != b.writer) {", "header(p.last, events.HeaderWriter) != b.writer {", "./bridge -run TestWhatIsRememberedOfARecord"},
	{"9.2: in a stream of our own, the first write names the message read", "stream/append.go",
		"	if !set.dedicated || !at.Acked && set.obeysFilter {\n", "	if !set.dedicated {\n", "./stream -run TestStaleCursorIsRefused|TestForeignMessageInBetween"},
	{"9.2: in a stream with others, every write names the realm's newest message", "stream/append.go",
		"	if !set.dedicated || !at.Acked && set.obeysFilter {\n", "	if set.dedicated && !at.Acked {\n", "./stream -run TestStaleCursorIsRefused|TestForeignMessageInBetween"},
	{"9.2: in a replicated stream of our own, the first write names the stream's sequence too", "stream/append.go",
		"	if set.dedicated {\n		headers = append(headers, Header{headerLastSeq,", "	if set.dedicated && at.Acked {\n		headers = append(headers, Header{headerLastSeq,", "./stream -run TestNoQuorum -count 5"},
	{"9.5: a poll waits as the budget thins", "poller/pace.go",
		"	return max(wait, over)\n", "	return 0 * max(wait, over)\n", "./poller -run TestBusyHour|TestPace"},
	{"6: a 429 is waited out as told, to its last fraction", "poller/retry.go",
		"math.Ceil(min(seconds, mostRetryAfter.Seconds()) * 1e9)", "math.Floor(min(seconds, mostRetryAfter.Seconds())) * 1e9", "./poller -run TestRetryAfter"},
	{"7: who is paused past its lease does not write", "fleet/session.go",
		"	return !now.Before(d.mono) || !now.Round(0).Before(d.wall)\n", "	return now.IsZero()\n",
		"./fleet -run TestPausedHolder -count 5"},
}

// TestMutationsApply keeps the list true to the sources.
func TestMutationsApply(t *testing.T) {
	for _, m := range slices.Concat(mutations, bridgeMutations, pollerMutations, streamMutations) {
		src, err := os.ReadFile(filepath.Join("..", m.file))
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(src), m.old); n != 1 {
			t.Errorf("%s: what is to be broken stands %d times in %s, want once", m.rule, n, m.file)
		}
	}
}

// TestMutations breaks the rules one by one and expects the suite that is named with it
// to notice.
//
//	go test ./bridge -run TestMutations -mutations -v -timeout 120m
func TestMutations(t *testing.T) {
	if !*runMutations {
		t.Log("not asked for: -mutations")
		return
	}
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range slices.Concat(mutations, bridgeMutations, pollerMutations, streamMutations) {
		t.Run(m.rule, func(t *testing.T) {
			src, err := os.ReadFile(filepath.Join(root, m.file))
			if err != nil {
				t.Fatal(err)
			}
			broken := filepath.Join(t.TempDir(), filepath.Base(m.file))
			if err := os.WriteFile(broken, []byte(strings.Replace(string(src), m.old, m.new, 1)), 0o600); err != nil {
				t.Fatal(err)
			}
			overlay := filepath.Join(t.TempDir(), "overlay.json")
			if err := os.WriteFile(overlay, []byte(`{"Replace":{"`+filepath.Join(root, m.file)+`":"`+broken+`"}}`), 0o600); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command("go", append([]string{"test", "-overlay", overlay}, strings.Fields(m.suite)...)...)
			cmd.Dir = root
			out, err := cmd.CombinedOutput()
			switch text := string(out); {
			case strings.Contains(text, "[build failed]"), strings.Contains(text, "[setup failed]"):
				t.Fatalf("the broken source does not compile:\n%s", text)
			case err == nil:
				t.Error("the suite did not notice")
			default:
				t.Log(noticed(text))
			}
		})
	}
}

// noticed is the first complaint in the output of a failed run.
func noticed(out string) string {
	for line := range strings.Lines(out) {
		if strings.Contains(line, "_test.go:") || strings.HasPrefix(line, "panic:") {
			return strings.TrimSpace(line)
		}
	}
	return strings.TrimSpace(out)
}
