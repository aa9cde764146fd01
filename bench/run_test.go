//go:build linux && !race

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What the race detector slows down here is other programs.

// TestRun runs the cheap sections in the smallest sizes: all cases are there, with figures
// that can be. How large they are is no matter here.
func TestRun(t *testing.T) {
	file := filepath.Join(t.TempDir(), "rows.json")
	var out, errs bytes.Buffer
	code := run(context.Background(), []string{"-only", "drain,live,cost,realms", "-rounds", "1", "-scale", "0.001",
		"-nats", "none", "-json", file},
		&out, &errs)
	if code != 0 {
		t.Fatalf("exit code %d:\n%s%s", code, &out, &errs)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		About struct {
			Commit     string
			Processors int
		}
		Rows []struct {
			Section, Case, What string
			Value               float64
			Reference           *struct{ Value float64 }
			Ratio               float64
		}
	}
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	if got.About.Commit == "" || got.About.Processors < 1 {
		t.Errorf("the head is %+v", got.About)
	}
	counts := make(map[string]int)
	for _, r := range got.Rows {
		counts[r.Section+", "+r.Case]++
		// What is live is small differences of times, which a machine that stops in between may
		// turn around.
		// What a process takes within a second may be nothing.
		if r.Section != "live" && r.Section != "realms" && (!(r.Value > 0) || r.Reference != nil && (!(r.Reference.Value > 0) || !(r.Ratio > 0))) {
			t.Errorf("a figure that cannot be: %+v", r)
		}
		if !strings.Contains(out.String(), r.What) {
			t.Errorf("not in the table: %+v", r)
		}
	}
	want := map[string]int{"live, 500 B, R1 file": 4, "live, beside 20 busy realms": 4, "cost, 500 B, R1 file": 1,
		"cost, start, existing queue": 1, "cost, stop, existing queue": 1, "cost, start, new queue": 1,
		"cost, stop, new queue":   1,
		"cost, the binary":        1,
		"realms, 1 realm, HTTP/1": 2, "realms, 1 realm, HTTP/1, idle": 7, "realms, 1 realm, HTTP/1, busy": 7,
		"realms, 10 realms, HTTP/1": 2, "realms, 10 realms, HTTP/1, idle": 8, "realms, 10 realms, HTTP/1, busy": 8,
		"realms, 1 realm, HTTP/2": 2, "realms, 1 realm, HTTP/2, idle": 7, "realms, 1 realm, HTTP/2, busy": 7,
		"realms, 10 realms, HTTP/2": 2, "realms, 10 realms, HTTP/2, idle": 8, "realms, 10 realms, HTTP/2, busy": 8}
	if _, err := os.Stat(certificates); err == nil {
		want["cost, the image, packed"] = 1
	}
	for _, c := range []string{"500 B, R1 file", "100 B, R1 file", "2 KB, R1 file", "captured mix, R1 file",
		"500 B, R1 memory", "500 B, R3 file"} {
		want["drain, "+c] = 1
	}
	for c, n := range want {
		if counts[c] != n {
			t.Errorf("%s: %d rows, want %d", c, counts[c], n)
		}
		delete(counts, c)
	}
	if len(counts) > 0 {
		t.Errorf("more than was asked for: %v", counts)
	}
}
