package bridge_test

import (
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

var runMutations = flag.Bool("mutations", false, "break each rule in a copy of the sources, and see that the suite notices")

// mutation breaks one rule of the design in one place. The suite must fail on it: so we know that it can.
type mutation struct {
	rule     string // what is broken
	file     string // from the module's root
	old, new string // old stands exactly once in file
	suite    string // arguments of go test
}

const simulation = "./bridge -run TestSimulation -failfast -timeout 5m -seeds 4000"

var mutations = []mutation{
	{"rule 1: what is stored is acknowledged, and nothing else", "bridge/store.go",
		"		err = b.append(ctx, entries, phasePoll)\n",
		"		if len(entries) > 0 {\n			b.known = entries[len(entries)-1].after\n		}\n		if err = b.append(ctx, entries, phasePoll); errors.Is(err, errMoved) {\n			err = nil\n		}\n", simulation},
	{"rule 2: nothing is passed over without a record", "bridge/store.go",
		"			entries = append(entries, e)\n			at, prev = next, id\n			continue\n",
		"			_ = e\n			at, prev = next, id\n			continue\n", simulation},
	{"rule 3: the first write after a read names the message read, not the sequence that INFO tells", "bridge/bridge.go",
		"			b.cursor, b.epoch, b.cursorOK = p.cursor, epoch, true\n",
		"			b.cursor, b.epoch, b.cursorOK = p.cursor, epoch, true\n			if info, err := b.stream.Info(ctx); err == nil {\n				b.cursor = stream.Cursor{Seq: info.LastSeq, Acked: true}\n			}\n", simulation},
	{"rule 4: an unclear answer is settled by reading", "bridge/store.go",
		"		default:\n			if e != nil && e.Kind == stream.Unclear {\n",
		"		case e != nil && e.Kind == stream.Unclear:\n			b.known = entries[len(entries)-1].after\n			return nil\n		default:\n			if e != nil && e.Kind == stream.Unclear {\n", simulation},
	{"settle: what was stored is found again", "bridge/store.go",
		"			return i + 1, nil\n", "			return 0, nil\n", simulation},
	{"settle: a record of another instance at the same position counts", "bridge/store.go",
		" || p.last != nil && p.last.Seq > b.knownSeq {", " {", "./bridge -run TestSettle"},
	{"9.1: the phase is read off the newest message", "bridge/place.go",
		"		p.phase = phaseRefill\n", "		p.phase = phasePoll\n", simulation},
	{"9.1: polling starts at -1, not at register's last_event_id", "bridge/lost.go",
		"	return b.enroll(ctx, p, r, -1)\n}\n\n// replace",
		"	return b.enroll(ctx, p, r, 0)\n}\n\n// replace", simulation},
	{"9.3: a gap is opened by a write, not by one refusal believed", "bridge/lost.go",
		"	if err := b.put(ctx, p, e); err != nil {\n		return err\n	}\n	b.losses++\n",
		"	_ = b.put(ctx, place{cursor: b.cursor}, e)\n	b.losses++\n", simulation},
	{"9.3: the stream is read before a queue is given up", "bridge/lost.go",
		"	if b.wentBack(p) || p.phase != phasePoll || p.at != b.known {\n		return false, errMoved\n	}\n", "", simulation},
	{"9.3: a stream that went back is noticed", "bridge/bridge.go",
		"	return p.seq() < b.knownSeq || p.at.Queue == b.known.Queue && p.at.Last < b.known.Last\n", "	return false\n", "./bridge -run TestTailLost"},
	{"9.4: the largest id is no watermark", "bridge/refill.go",
		"		low := smallest(ids) - 1\n", "		low := ids[len(ids)-1].id\n", "./bridge -run TestLateMessageIsRefilled"},
	{"9.4: what Zulip has at a start is not taken for stored", "bridge/follow.go",
		"	r.Newest = newestIDs{Own: max(r.Newest.Own, b.largest), Public: max(r.Newest.Public, b.largest)}\n",
		"	r.Newest, _ = b.askNewest(ctx)\n	r.Begin = nil\n", simulation},
	{"9.4: a refill passes over what the stream holds", "bridge/refill.go",
		"		case held[m.id]:\n", "		case false:\n", simulation},
	{"5: a live message that was refilled is skipped", "bridge/refill.go",
		"	return b.held.has(id), nil\n", "	return false, nil\n", simulation},
	{"5: a new queue is recorded before its first poll", "bridge/lost.go",
		"	if err := b.put(ctx, p, e); err != nil {\n		b.discard(ctx, r.QueueID)\n		return err\n	}\n	b.followNew(r)\n	return nil\n",
		"	b.followNew(r)\n	b.known = poller.Position{Queue: r.QueueID, Last: last}\n	if batch, err := b.poller.Next(ctx, b.known); err == nil && len(batch.Events) > 0 {\n		_, _ = b.poller.Next(ctx, poller.Position{Queue: r.QueueID, Last: batch.Events[len(batch.Events)-1].ID})\n	}\n	return b.put(ctx, p, e)\n", simulation},
	{"9.6: the old queue is read once more behind the register of the new one", "bridge/changeover.go",
		"	for more := true; more && err == nil; {\n", "	for more := false; more && err == nil; {\n", simulation},
	{"7: another instance's record replaces what is remembered", "bridge/bridge.go",
		"		b.record, b.held = nil, nil // there may be another record\n", "", "./bridge -run TestRecordOfAnotherInstance"},
	{"9.2: in a stream of our own, the first write names the message read", "stream/append.go",
		"	if !isDedicated || !at.Acked {\n", "	if !isDedicated {\n", "./stream -run TestStaleCursorIsRefused|TestForeignMessageInBetween"},
	{"9.2: in a stream with others, every write names the realm's newest message", "stream/append.go",
		"	if !isDedicated || !at.Acked {\n", "	if isDedicated && !at.Acked {\n", "./stream -run TestStaleCursorIsRefused|TestForeignMessageInBetween"},
	{"9.2: in a replicated stream of our own, the first write names the stream's sequence too", "stream/append.go",
		"	if isDedicated {\n		f.out.set(headerLastSeq,", "	if isDedicated && at.Acked {\n		f.out.set(headerLastSeq,", "./stream -run TestNoQuorum -count 5"},
	{"9.5: a poll waits as the budget thins", "poller/pace.go",
		"	return wait\n}\n\n// poll notes", "	return 0 * wait\n}\n\n// poll notes", "./poller -run TestBusyHour|TestPace"},
	{"6: a 429 is waited out as told, to its last fraction", "poller/pace.go",
		"math.Ceil(min(seconds, mostTold.Seconds()) * 1e9)", "math.Floor(min(seconds, mostTold.Seconds())) * 1e9", "./poller -run TestRetryAfter"},
	{"7: who is paused past its lease does not write", "lease/lease.go",
		"	return !now.Before(d.mono) || !now.Round(0).Before(d.wall)\n", "	return now.IsZero()\n",
		"./lease -run TestPausedHolder -count 5"},
}

// TestMutationsApply keeps the list true to the sources.
func TestMutationsApply(t *testing.T) {
	for _, m := range mutations {
		src, err := os.ReadFile(filepath.Join("..", m.file))
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(src), m.old); n != 1 {
			t.Errorf("%s: what is to be broken stands %d times in %s, want once", m.rule, n, m.file)
		}
	}
}

// TestMutations breaks the rules one by one and expects the suite that is named with it to notice.
//
//	go test ./bridge -run TestMutations -mutations -v -timeout 30m
func TestMutations(t *testing.T) {
	if !*runMutations {
		t.Log("not asked for: -mutations")
		return
	}
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mutations {
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
