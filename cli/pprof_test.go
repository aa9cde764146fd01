package cli

import (
	"net/http"
	"strings"
	"testing"
)

// Profiles are served where they are asked for, and nowhere else; none of them shows what
// the command line has.
func TestPprof(t *testing.T) {
	s := begin(t)
	s.runs("run", "--pprof").want(t, 2, "--pprof (or ZULIP_NATS_PPROF) is given without --http", "--http 127.0.0.1:8080")
	for _, asked := range []bool{false, true} {
		port := freePort(t)
		args := []string{"run", "--zuliprc", s.nobody(), "--nats-url", "nats://127.0.0.1:1", "--nats-user", "u",
			"--nats-password", someToken, "--http", "127.0.0.1:" + port}
		if asked {
			args = append(args, "--pprof")
		}
		p := s.starts(args...)
		url := "http://127.0.0.1:" + port
		p.waits("an answer", func() bool { code, _ := fetched(t, url+"/healthz"); return code == 200 })
		for path, says := range map[string]string{
			"":                  "goroutine",
			"goroutine?debug=2": "ServeHTTP",
			"heap?debug=1":      "heap profile",
			"cmdline":           "", // has passwords
			"profile?seconds=1": "",
			"trace?seconds=0.1": "",
			"symbol":            "num_symbols",
		} {
			code, body := fetched(t, url+"/debug/pprof/"+path)
			want := 404
			if asked && path != "cmdline" {
				want = 200
			}
			if code != want || want == 200 && !strings.Contains(body, says) {
				t.Errorf("with --pprof=%v %q is %d:\n%.300s", asked, path, code, body)
			}
			if strings.Contains(body, someToken) {
				t.Errorf("%q shows the password", path)
			}
		}
		if code, _ := fetched(t, url+"/status"); code != 503 {
			t.Errorf("/status is %d", code)
		}
		p.stops()
		if strings.Contains(p.err.String(), "/debug/pprof/") != asked {
			t.Errorf("with --pprof=%v the log is\n%s", asked, p.err.String())
		}
	}
	port := freePort(t)
	p := s.starts("run", "--zuliprc", s.nobody(), "--nats-url", "nats://127.0.0.1:1", "--http", ":"+port, "--pprof")
	p.waits("the warning", func() bool { return strings.Contains(p.err.String(), "without a password") })
	p.stops()
	if n := strings.Count(p.err.String(), "by --pprof they can look into this process"); n != 1 {
		t.Errorf("the risk is told %d times:\n%s", n, p.err.String())
	}
	if resp, err := http.Get("http://127.0.0.1:" + port + "/debug/pprof/"); err == nil {
		resp.Body.Close()
		t.Error("it is served when the program has ended")
	}
}
