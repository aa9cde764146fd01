package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.yaml.in/yaml/v3"

	"zulip-nats/cli"
	"zulip-nats/events"
	"zulip-nats/stream"
	"zulip-nats/stream/natstest"
	"zulip-nats/zulipsim"
)

// goCommand is what the Go command says.
func goCommand(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("go", args...).Output()
	if err != nil {
		t.Fatalf("go %s: %v", strings.Join(args, " "), err)
	}
	return strings.TrimSpace(string(out))
}

// The images of Go set GOTOOLCHAIN=local: a patch release in go.mod that no dependency
// asks for locks out whoever has an older one of the same line.
func TestOldestGo(t *testing.T) {
	own := goCommand(t, "list", "-m", "-f", "{{.GoVersion}}")
	asked := strings.Fields(goCommand(t, "list", "-m", "-f", "{{if not .Main}}{{.GoVersion}}{{end}}", "all"))
	for _, v := range asked {
		if v == own {
			return
		}
	}
	t.Errorf("go.mod asks for Go %s, and no dependency does: they ask for %q", own, asked)
}

// The README names the server that the code warns below.
func TestOldestNATS(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	oldest, of212, _ := strings.Cut(strings.TrimSuffix(stream.Oldest, ")"), " (of the 2.12 line: ")
	for _, words := range []string{"The oldest nats-server that is supported is " + oldest + ", of the 2.12 line " +
		of212 + ";",
		"| " + oldest + " and newer in 2.11 |", "| " + of212 + " and newer |"} {
		if !bytes.Contains(readme, []byte(words)) {
			t.Errorf("the README does not say %q", words)
		}
	}
}

// compose is docker-compose.yml, as far as it is looked at.
type compose struct {
	Services map[string]struct {
		Build struct {
			Args map[string]string
		}
		Restart     string
		Environment map[string]string
		Command     []string
		Volumes     []yaml.Node
		Configs     []struct{ Source, Target string }
		Ports       []string
		Healthcheck struct{ Disable bool }
	}
	Configs map[string]struct{ File string }
}

// variable is ${NAME:-default} in docker-compose.yml.
var variable = regexp.MustCompile(`\$\{([A-Z_]+):-([^}]*)\}`)

// readCompose reads the file as Docker does, with the variables of the environment put
// in.
func readCompose(t *testing.T) (c compose) {
	t.Helper()
	text, err := os.ReadFile("docker-compose.yml")
	if err != nil {
		t.Fatal(err)
	}
	text = variable.ReplaceAllFunc(text, func(m []byte) []byte {
		parts := variable.FindSubmatch(m)
		if v := os.Getenv(string(parts[1])); v != "" {
			return []byte(v)
		}
		return parts[2]
	})
	if err := yaml.Unmarshal(text, &c); err != nil {
		t.Fatalf("docker-compose.yml: %v", err)
	}
	return c
}

func TestCompose(t *testing.T) {
	t.Setenv("VERSION", "1.2.3")
	t.Setenv("COMMIT", "0123abc")
	t.Setenv("CREATED", "2026-11-28T12:00:00Z")
	c := readCompose(t)
	bridge := c.Services["bridge"]
	for name, want := range map[string]string{"bridge": "on-failure:5", "nats": "unless-stopped", "demo": ""} {
		if got := c.Services[name].Restart; got != want {
			t.Errorf("%s restarts %q, not %q", name, got, want)
		}
	}
	for _, name := range []string{"bridge", "demo"} {
		if a := c.Services[name].Build.Args; a["VERSION"] != "1.2.3" || a["COMMIT"] != "0123abc" ||
			a["CREATED"] != "2026-11-28T12:00:00Z" {
			t.Errorf("%s is built with %v", name, a)
		}
	}
	dockerfile, err := os.ReadFile("Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	// Each stage has arguments of its own.
	_, final, _ := bytes.Cut(dockerfile, []byte("\nFROM scratch\n"))
	for arg := range bridge.Build.Args {
		if !bytes.Contains(final, []byte("\nARG "+arg+"=")) || !bytes.Contains(final, []byte(`="${`+arg+`}"`)) {
			t.Errorf("no label of the image has the argument %s", arg)
		}
	}
	for _, arg := range []string{"VERSION", "COMMIT"} {
		if n := bytes.Count(dockerfile, []byte("\nARG "+arg+"=")); n != 2 {
			t.Errorf("%d of the two stages have the argument %s", n, arg)
		}
	}
	// The short form makes a folder where the file is missing, and the bridge then fails
	// to read it for no clear reason.
	if len(bridge.Volumes) != 1 {
		t.Fatalf("the bridge has %d volumes", len(bridge.Volumes))
	}
	var rc struct {
		Type, Source, Target string
		ReadOnly             bool `yaml:"read_only"`
		Bind                 struct {
			CreateHostPath *bool `yaml:"create_host_path"`
		}
	}
	if err := bridge.Volumes[0].Decode(&rc); err != nil {
		t.Fatal(err)
	}
	if rc.Type != "bind" || rc.Source != "./zuliprc" || rc.Target != bridge.Environment["ZULIP_CONFIG"] ||
		!rc.ReadOnly ||
		rc.Bind.CreateHostPath == nil || *rc.Bind.CreateHostPath {
		t.Errorf("the zuliprc is mounted as %+v", rc)
	}
	for name, service := range c.Services {
		for _, port := range service.Ports {
			if !strings.HasPrefix(port, "127.0.0.1:") {
				t.Errorf("port %s of %s is open to others", port, name)
			}
		}
	}
	// The image's HEALTHCHECK asks a run, and the demo is none.
	if bridge.Healthcheck.Disable || !c.Services["demo"].Healthcheck.Disable {
		t.Errorf("the health check is switched off: of the bridge %v, of the demo %v", bridge.Healthcheck.Disable,
			c.Services["demo"].Healthcheck.Disable)
	}
}

// The image's HEALTHCHECK, with the image's variables, finds a run that has those too. It
// needs no shell, and the program that it runs is the one of the image.
func TestHealthcheck(t *testing.T) {
	dockerfile, err := os.ReadFile("Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	_, final, _ := strings.Cut(string(dockerfile), "FROM scratch")
	m := regexp.MustCompile(`(?m)^HEALTHCHECK .*\bCMD (\[.*\])$`).FindStringSubmatch(final)
	entry := regexp.MustCompile(`(?m)^ENTRYPOINT (\[.*\])$`).FindStringSubmatch(final)
	if m == nil || entry == nil {
		t.Fatal("the Dockerfile has no HEALTHCHECK or ENTRYPOINT in the exec form")
	}
	var check, program []string
	if err := errors.Join(json.Unmarshal([]byte(m[1]), &check), json.Unmarshal([]byte(entry[1]), &program)); err != nil {
		t.Fatal(err)
	}
	if len(check) < 2 || len(program) != 1 || check[0] != program[0] {
		t.Fatalf("HEALTHCHECK runs %q, and ENTRYPOINT is %q", check, program)
	}
	address := regexp.MustCompile(`(?m)^ENV ZULIP_NATS_HTTP=(\S+)$`).FindStringSubmatch(final)
	exposed := regexp.MustCompile(`(?m)^EXPOSE (\d+)$`).FindStringSubmatch(final)
	if address == nil || exposed == nil || address[1] != ":"+exposed[1] || exposed[1] != "8080" {
		t.Fatalf("it is served at %q, and exposed is %q", address, exposed)
	}
	// At another port, since that one may be taken on this machine.
	port := natstest.FreePort(t)
	t.Setenv("ZULIP_NATS_HTTP", fmt.Sprintf(":%d", port))
	zulip := &zulipsim.Server{}
	site := zulip.Start(t)
	bot := zulip.Account("bridge-bot@example.com")
	for name, value := range map[string]string{"ZULIP_EMAIL": bot.Email, "ZULIP_API_KEY": bot.Key, "ZULIP_SITE": site,
		"ZULIP_CONFIG": "", "ZULIP_NATS_REALM": "acme", "ZULIP_NATS_NATS_URL": natstest.Start(t).URL} {
		t.Setenv(name, value)
	}
	asked := func() (code int, says string) {
		var out natstest.Buffer
		code = cli.Run(t.Context(), check[1:], &out, &out)
		return code, out.String()
	}
	if code, says := asked(); code != 1 {
		t.Errorf("without a run: exit code %d, %s", code, says)
	}
	ctx, stop := context.WithCancel(t.Context())
	var log natstest.Buffer
	ended := make(chan int, 1)
	go func() { ended <- cli.Run(ctx, []string{"run"}, &log, &log) }()
	defer func() {
		stop()
		if code := <-ended; code != 0 || t.Failed() {
			t.Errorf("exit code %d, the log is:\n%s", code, log.String())
		}
	}()
	// The library of the command line has a flag of its own for all, so two commands are not
	// read at the same time.
	natstest.Eventually(t, "a run that serves", func() bool { return strings.Contains(log.String(), "http_served") })
	natstest.Eventually(t, "a run that is well", func() bool {
		code, says := asked()
		return code == 0 && says == "acme: its loop turns\n"
	})
}

// composeNATS starts the server that docker-compose.yml runs, with its configuration and
// variables.
func composeNATS(t *testing.T) *natstest.Server {
	t.Helper()
	c := readCompose(t)
	nats := c.Services["nats"]
	for name, value := range nats.Environment {
		t.Setenv(name, value)
	}
	if len(nats.Configs) != 1 || fmt.Sprint(nats.Command) != "[--config "+nats.Configs[0].Target+"]" {
		t.Fatalf("the server runs %q with the configs %v", nats.Command, nats.Configs)
	}
	opts, err := server.ProcessConfigFile(filepath.FromSlash(c.Configs[nats.Configs[0].Source].File))
	if err != nil {
		t.Fatal(err)
	}
	if !opts.SyncAlways || opts.StoreDir != "/data" || opts.HTTPPort != 8222 || opts.Port != 4222 {
		t.Errorf("sync always %t, store %s, ports %d and %d", opts.SyncAlways, opts.StoreDir, opts.Port, opts.HTTPPort)
	}
	return natstest.Start(t, func(o *server.Options) {
		host, port, dir := o.Host, o.Port, o.StoreDir
		*o = *opts
		o.Host, o.Port, o.HTTPPort, o.StoreDir, o.NoSigs, o.NoLog = host, port, 0, dir, true, true
	})
}

// The two users of docker-compose.yml: what the bridge needs it may, and a reader may
// read all of it and write nothing. With passwords that NATS would take for numbers, too.
func TestComposeUsers(t *testing.T) {
	for _, passwords := range [][2]string{{"bridge", "reader"}, {"12k", "007"}} {
		t.Run(passwords[0], func(t *testing.T) {
			if passwords[0] != "bridge" {
				t.Setenv("NATS_BRIDGE_PASSWORD", passwords[0])
				t.Setenv("NATS_READER_PASSWORD", passwords[1])
			}
			s := composeNATS(t)
			zulip := &zulipsim.Server{}
			site := zulip.Start(t)
			bot := zulip.Account("bridge-bot@example.com")
			for name, value := range readCompose(t).Services["bridge"].Environment {
				t.Setenv(name, value)
			}
			rc := filepath.Join(t.TempDir(), "zuliprc")
			if err := os.WriteFile(rc, fmt.Appendf(nil, "[api]\nemail=%s\nkey=%s\nsite=%s\n", bot.Email, bot.Key, site),
				0o600); err != nil {
				t.Fatal(err)
			}
			t.Setenv("ZULIP_CONFIG", rc)
			t.Setenv("ZULIP_NATS_NATS_URL", s.URL)
			t.Setenv("ZULIP_NATS_REALM", "acme")
			ctx, stop := context.WithCancel(t.Context())
			var log natstest.Buffer
			ended := make(chan int, 1)
			go func() { ended <- cli.Run(ctx, readCompose(t).Services["bridge"].Command, &log, &log) }()
			defer func() {
				stop()
				if code := <-ended; code != 0 {
					t.Errorf("exit code %d", code)
				}
				if t.Failed() || strings.Contains(strings.ToLower(log.String()), "permission") {
					t.Errorf("the log is:\n%s", log.String())
				}
			}()

			denied := make(chan error, 100)
			nc := s.Conn(nats.UserInfo("reader", passwords[1]),
				nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { denied <- err }))
			js := natstest.JetStream(t, nc)
			live, err := nc.SubscribeSync("zulip.*.message")
			if err != nil {
				t.Fatal(err)
			}
			natstest.Eventually(t, "a queue that is polled",
				func() bool { q := zulip.Queues(); return len(q) == 1 && q[0].Waiting })
			zulip.SendMessage(zulipsim.Message{Channel: "general", Topic: "t", Content: "one"})
			zulip.EmitRaw(`{"type":"drafts","op":"add","drafts":["` + strings.Repeat("x", 2<<20) + `"],"id":%ID%}`)

			// It reads: as it comes, by a consumer, and large ones from the object store.
			if m, err := live.NextMsg(2 * time.Minute); err != nil || !bytes.Contains(m.Data, []byte(`"one"`)) {
				t.Errorf("live came %v, %v", m, err)
			}
			consumer, err := js.CreateOrUpdateConsumer(t.Context(), "ZULIP_acme", jetstream.ConsumerConfig{
				Durable: "triage", FilterSubjects: []string{"zulip.acme.message", "zulip.acme.drafts"}})
			if err != nil {
				t.Fatal(err)
			}
			var object string
			for _, want := range []string{"message", "drafts"} {
				m, err := consumer.Next(jetstream.FetchMaxWait(2 * time.Minute))
				if err != nil || m.Headers().Get(events.HeaderEventType) != want {
					t.Fatalf("%v, %v instead of an event of type %s", m, err, want)
				}
				object = m.Headers().Get(events.HeaderObject)
				if err := m.DoubleAck(t.Context()); err != nil {
					t.Error(err)
				}
			}
			store, err := js.ObjectStore(t.Context(), "zulip_acme")
			if err != nil {
				t.Fatal(err)
			}
			if data, err := store.GetBytes(t.Context(), object); err != nil || len(data) < 2<<20 {
				t.Errorf("object %q: %d bytes, %v", object, len(data), err)
			}
			if len(denied) > 0 {
				t.Errorf("reading is denied: %v", <-denied)
			}

			// And nothing else.
			for _, subject := range []string{"zulip.acme.message", "zulip.acme.bridge.queue", "$O.zulip_acme.C.x",
				"$JS.API.STREAM.PURGE.ZULIP_acme",
				"$JS.API.STREAM.DELETE.ZULIP_acme", "$JS.API.STREAM.UPDATE.ZULIP_acme", "$JS.API.STREAM.CREATE.MINE",
				"$JS.API.STREAM.MSG.DELETE.ZULIP_acme"} {
				if err := nc.Publish(subject, nil); err != nil {
					t.Fatal(err)
				}
				select {
				case err := <-denied:
					if !errors.Is(err, nats.ErrPermissionViolation) {
						t.Errorf("%s: %v", subject, err)
					}
				case <-time.After(2 * time.Minute):
					t.Errorf("a reader may publish on %s", subject)
				}
			}
			for _, user := range []nats.Option{nats.UserInfo("reader", "wrong"), nats.UserInfo("", ""),
				nats.UserInfo("bridge", passwords[1])} {
				if nc, err := nats.Connect(s.URL, user); err == nil {
					nc.Close()
					t.Error("a wrong password is taken")
				}
			}
		})
	}
}
