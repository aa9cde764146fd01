package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	urfave "github.com/urfave/cli/v2"

	"zulip-nats/monitor"
	"zulip-nats/redact"
	"zulip-nats/tail"
)

// healthTime is for the whole question. Docker's HEALTHCHECK has 30 s unless told
// otherwise; who answers does not wait for anybody.
const healthTime = 4 * time.Second

// health asks a `run` that serves --http, on the same machine or in the same container,
// which may have no other program that could.
func (a *app) health() *urfave.Command {
	var address string
	var deep bool
	options := []*option{
		opt("", "http", "`ADDRESS` that `run` serves, the same as there", "", httpAddress(&address)),
		opt("", "deep", "ask whether each realm does its job (/status), not only whether the loops turn (/healthz): "+
			"it fails while NATS or Zulip is away, which no new start heals", "", truth(&deep), yes),
	}
	return &urfave.Command{
		Name:      "health",
		Usage:     "say whether a run on this machine is well",
		UsageText: "zulip-nats health [--http ADDRESS] [--deep]",
		Description: "For HEALTHCHECK of containers, and scripts: one sentence, and exit code 0 if it is well, 1 if " +
			"not.\nThe address is that of `run --http`, and comes from the same variable, ZULIP_NATS_HTTP.",
		Flags: flags(options),
		Action: func(u *urfave.Context) error {
			if err := parse(options); err != nil {
				return err
			}
			if address == "" {
				return usageErrorf("it is not said where to ask: give --http (or ZULIP_NATS_HTTP) as for `zulip-nats run`, " +
					"which serves nothing without it")
			}
			says, err := askHealth(u.Context, address, deep)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(a.stdout, says)
			return err
		},
	}
}

// askHealth gives the answer as one sentence; as an error where it is not well.
func askHealth(ctx context.Context, address string, deep bool) (says string, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, healthTime, fmt.Errorf("no answer for %v", healthTime))
	defer cancel()
	url := "http://" + reachable(address) + "/healthz"
	if deep {
		url = "http://" + reachable(address) + "/status"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}} // and no proxy
	resp, err := client.Do(req)
	var body []byte
	if err == nil {
		defer resp.Body.Close()
		body, err = io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	}
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		if e, ok := errors.AsType[*net.OpError](err); ok {
			err = e.Err // the address is in the sentence already
		}
		return "", fmt.Errorf("%s does not answer (%w): look whether `zulip-nats run` runs there with --http %s, and "+
			"at its log", url, err, address)
	}
	if says = summary(body, deep); says == "" || resp.StatusCode != 200 && resp.StatusCode != 503 {
		return "", fmt.Errorf("%s answers %d, and not as `zulip-nats run` does: something else has this port; choose "+
			"another one with --http", url, resp.StatusCode)
	}
	if resp.StatusCode != 200 {
		return "", errors.New(says)
	}
	return says, nil
}

// summary makes one sentence of an answer, "" if it is none of ours.
func summary(body []byte, deep bool) string {
	var parts []string
	if !deep {
		for line := range strings.Lines(string(body)) {
			realm, _, ok := strings.Cut(line, ": ")
			if _, err := realmOf(realm, ""); !ok || err != nil {
				return ""
			}
			parts = append(parts, tail.Clean(strings.TrimSpace(line), mostLine))
		}
		return strings.Join(parts, "; ")
	}
	var report monitor.Report
	if json.Unmarshal(body, &report) != nil {
		return ""
	}
	for _, r := range report.Realms {
		text := r.Realm + ": " + r.State + ", " + r.Says
		for _, reason := range r.Reasons {
			text += " (" + reason.Side + ": " + reason.Says + ")"
		}
		parts = append(parts, tail.Clean(text, mostLine))
	}
	return strings.Join(parts, "; ")
}

// httpAddress takes host:port to listen at; without a host it is all of this machine's
// addresses.
func httpAddress(to *string) func(string) error {
	return func(s string) error {
		host, port, err := net.SplitHostPort(s)
		n, notNumber := strconv.Atoi(port)
		if err != nil || notNumber != nil || n < 1 || n > 65535 || strings.ContainsAny(host, "/@ \t") {
			return fmt.Errorf("%.200q is no address to listen at: write it like 127.0.0.1:8080, or :8080 for all "+
				"addresses of this machine", redact.Text(s))
		}
		*to = s
		return nil
	}
}

// reachable is where to ask whoever listens at an address.
func reachable(address string) string {
	host, port, _ := net.SplitHostPort(address) // it was looked at
	switch host = cmp.Or(host, "0.0.0.0"); host {
	case "0.0.0.0":
		host = "127.0.0.1"
	case "::":
		host = "::1"
	}
	return net.JoinHostPort(host, port)
}
