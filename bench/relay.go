//go:build linux

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// relayVariable has what a relay is to do: site, address, key, NATS and subject.
const relayVariable = "ZULIP_NATS_BENCH_RELAY"

// relay starts the smallest relay that anybody could write, in a process of its own as the
// program is: it polls, finds the ids with encoding/json, and publishes each event and
// waits for the acknowledgement. It forgets its queue when it ends, stores what it stored
// already when a publish is unclear, and knows nothing of pace or trouble.
func (t *scope) relay(z *zulip, natsURL, subject string) *process {
	self, err := os.Executable()
	t.must(err)
	return t.start([]string{relayVariable + "=" + strings.Join([]string{z.url, z.bot.Email, z.bot.Key, natsURL, subject}, " ")}, self)
}

// relayMain is the relay, in the process that is one.
func relayMain() {
	if v := os.Getenv(relayVariable); v != "" {
		f := strings.Fields(v)
		fmt.Fprintln(os.Stderr, relay(f[0], f[1], f[2], f[3], f[4]))
		os.Exit(1)
	}
}

func relay(site, email, key, natsURL, subject string) error {
	nc, err := nats.Connect(natsURL)
	if err != nil {
		return err
	}
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	ask := func(method, path string, query url.Values, answer any) error {
		r, err := http.NewRequest(method, site+path+"?"+query.Encode(), nil)
		if err != nil {
			return err
		}
		r.SetBasicAuth(email, key)
		got, err := http.DefaultClient.Do(r)
		if err != nil {
			return err
		}
		defer got.Body.Close()
		if got.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: %s", path, got.Status)
		}
		return json.NewDecoder(got.Body).Decode(answer)
	}
	var queue struct {
		ID string `json:"queue_id"`
	}
	if err := ask("POST", "/api/v1/register", nil, &queue); err != nil {
		return err
	}
	last := int64(-1)
	for {
		var answer struct{ Events []json.RawMessage }
		query := url.Values{"queue_id": {queue.ID}, "last_event_id": {strconv.FormatInt(last, 10)}}
		if err := ask("GET", "/api/v1/events", query, &answer); err != nil {
			return err
		}
		for _, raw := range answer.Events {
			var event struct{ ID int64 }
			if err := json.Unmarshal(raw, &event); err != nil {
				return err
			}
			if _, err := js.Publish(context.Background(), subject, raw); err != nil {
				return err
			}
			last = event.ID
		}
	}
}
