// Package deploy has no code: the files beside it are compared here with the program that
// they are for. What other tools say of them, deploy/check runs.
package deploy

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"go.yaml.in/yaml/v3"

	"zulip-nats/bridge"
	"zulip-nats/cli"
	"zulip-nats/monitor"
)

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// exported is what /metrics has: the labels of each metric, those that Prometheus adds
// too.
func exported(t *testing.T) map[string][]string {
	t.Helper()
	now := time.Now()
	all := bridge.Status{Realm: "acme", State: bridge.Following, Leads: true, Stored: now, Answered: now, Expires: now,
		Life: time.Hour, Counters: bridge.Counters{Events: map[string]uint64{"message": 1}, LastGap: now,
			Errors: map[bridge.Error]uint64{{Side: bridge.SideZulip, Kind: "key"}: 1}}}
	w := httptest.NewRecorder()
	monitor.New("1.2.3", func() []bridge.Status { return []bridge.Status{all} }).
		ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(w.Body)
	if err != nil {
		t.Fatal(err)
	}
	metrics := map[string][]string{}
	for name, family := range families {
		labels := []string{"instance", "job"}
		for _, l := range family.Metric[0].Label {
			labels = append(labels, l.GetName())
		}
		if family.GetType().String() != "HISTOGRAM" {
			metrics[name] = labels
			continue
		}
		metrics[name+"_bucket"] = append(slices.Clone(labels), "le")
		metrics[name+"_sum"], metrics[name+"_count"] = labels, labels
	}
	return metrics
}

var (
	quoted   = regexp.MustCompile(`"[^"]*"`)
	metric   = regexp.MustCompile(`\b((?:zulip_nats|process|go|promhttp)_\w+)(?:\{([^}]*)\})?`)
	matchers = regexp.MustCompile(`(\w+)\s*(?:=~|!~|!=|=)`)
	grouping = regexp.MustCompile(`\b(?:by|on|without|ignoring|group_left|group_right)\s*\(([^)]*)\)`)
)

// wrongIn lists what an expression of PromQL asks for that is not exported.
func wrongIn(expr string, exported map[string][]string) (wrong []string) {
	expr = quoted.ReplaceAllString(expr, `""`)
	used := metric.FindAllStringSubmatch(expr, -1)
	if len(used) == 0 {
		return []string{"no metric"}
	}
	var labels []string // of all metrics in it
	for _, m := range used {
		has, is := exported[m[1]]
		if !is {
			wrong = append(wrong, m[1])
		}
		labels = append(labels, has...)
		for _, l := range matchers.FindAllStringSubmatch(m[2], -1) {
			if is && !slices.Contains(has, l[1]) {
				wrong = append(wrong, m[1]+"{"+l[1]+"}")
			}
		}
	}
	for _, g := range grouping.FindAllStringSubmatch(expr, -1) {
		for l := range strings.SplitSeq(g[1], ",") {
			if l = strings.TrimSpace(l); !slices.Contains(labels, l) {
				wrong = append(wrong, "a label "+l)
			}
		}
	}
	return wrong
}

func TestWrongIn(t *testing.T) {
	all := exported(t)
	for expr, want := range map[string]int{
		`sum by (realm) (rate(zulip_nats_polls_total{realm=~"$realm",outcome!="failed"}[5m]))`:        0,
		`histogram_quantile(0.5, sum by (le) (rate(zulip_nats_publish_duration_seconds_bucket[5m])))`: 0,
		`process_resident_memory_bytes and on (instance, job) zulip_nats_build_info`:                  0,
		`sum by (type) (zulip_nats_polls_total)`:                                                      1,
		`zulip_nats_poll_total`:                                                                       1,
		`zulip_nats_leader{state="following"}`:                                                        1,
		`zulip_nats_publish_duration_seconds`:                                                         1,
		`vector(1)`:                                                                                   1,
	} {
		if got := wrongIn(expr, all); len(got) != want {
			t.Errorf("%s: %v", expr, got)
		}
	}
}

// dashboard is grafana/zulip-nats.json, as far as it is looked at.
type dashboard struct {
	Templating struct {
		List []struct{ Name, Definition string }
	}
	Panels []struct {
		ID      int
		Title   string
		GridPos struct{ X, Y, W, H int }
		Targets []struct{ Expr, LegendFormat string }
	}
}

func readDashboard(t *testing.T) (d dashboard) {
	t.Helper()
	if err := json.Unmarshal([]byte(read(t, "grafana/zulip-nats.json")), &d); err != nil {
		t.Fatal(err)
	}
	return d
}

func TestDashboard(t *testing.T) {
	all, d := exported(t), readDashboard(t)
	if len(d.Panels) < 10 {
		t.Errorf("%d panels", len(d.Panels))
	}
	taken := map[[2]int]string{}
	ids := map[int]bool{}
	for _, p := range d.Panels {
		if len(p.Targets) == 0 || p.Title == "" || ids[p.ID] {
			t.Errorf("panel %d, %q, has %d targets", p.ID, p.Title, len(p.Targets))
		}
		ids[p.ID] = true
		for _, target := range p.Targets {
			if wrong := wrongIn(target.Expr, all); len(wrong) > 0 || target.LegendFormat == "" {
				t.Errorf("%s: there is no %v in %s; legend %q", p.Title, wrong, target.Expr, target.LegendFormat)
			}
		}
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := taken[[2]int{x, y}]; other != "" || x >= 24 {
					t.Fatalf("%q is above %q, or outside", p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
	}
	for _, v := range d.Templating.List {
		if v.Definition != "" && len(wrongIn(v.Definition, all)) > 0 {
			t.Errorf("the variable %s comes of %s", v.Name, v.Definition)
		}
	}
}

// Each alert names the realm, says what to do, and where to read on.
func TestAlertRules(t *testing.T) {
	var rules struct {
		Groups []struct {
			Rules []struct {
				Alert, Expr         string
				Labels, Annotations map[string]string
			}
		}
	}
	if err := yaml.Unmarshal([]byte(read(t, "prometheus/alerts.yml")), &rules); err != nil {
		t.Fatal(err)
	}
	all, log, stories := exported(t), read(t, "../docs/log.md"), read(t, "prometheus/alerts_test.yml")
	n := 0
	for _, group := range rules.Groups {
		for _, rule := range group.Rules {
			n++
			if wrong := wrongIn(rule.Expr, all); len(wrong) > 0 {
				t.Errorf("%s: there is no %v", rule.Alert, wrong)
			}
			a := rule.Annotations
			if !strings.Contains(a["summary"], "{{ $labels.realm }}") || len(a["description"]) < 80 ||
				rule.Labels["severity"] == "" || !strings.Contains(stories, "alertname: "+rule.Alert+"\n") {
				t.Errorf("%s has %v, %v, or no story", rule.Alert, rule.Labels, a)
			}
			names, is := strings.CutPrefix(a["runbook"], "docs/log.md: ")
			for name := range strings.SplitSeq(names, ", ") {
				if !is || !strings.Contains(log, "| `"+name+"` |") {
					t.Errorf("%s points at %q, of which docs/log.md says nothing", rule.Alert, name)
				}
			}
		}
	}
	if n != 5 {
		t.Errorf("%d alerts", n)
	}
}

// The variables that the files set are options of the program.
func TestVariables(t *testing.T) {
	var help bytes.Buffer
	if code := cli.Run(t.Context(), []string{"run", "--help"}, &help, io.Discard); code != 0 {
		t.Fatal(code)
	}
	variable := regexp.MustCompile(`\bZULIP_[A-Z_]+[A-Z]\b`)
	for _, file := range []string{"systemd/zulip-nats.service", "kubernetes/standalone.yaml", "kubernetes/sidecar.yaml",
		"README.md"} {
		names := variable.FindAllString(read(t, file), -1)
		if len(names) == 0 {
			t.Errorf("%s sets nothing", file)
		}
		for _, name := range names {
			name = strings.TrimSuffix(name, "_FILE") // --help says that of all secrets at once
			if !strings.Contains(help.String(), "$"+name) {
				t.Errorf("%s sets %s, which no option has", file, name)
			}
		}
	}
}

// probe, container and manifest are objects of Kubernetes, as far as they are looked at.
type probe struct {
	HTTPGet struct{ Path, Port string } `yaml:"httpGet"`
}

type container struct {
	Name, RestartPolicy string
	Args                []string
	Env                 []struct{ Name, Value string }
	Ports               []struct {
		Name          string
		ContainerPort int `yaml:"containerPort"`
	}
	Startup   probe `yaml:"startupProbe"`
	Liveness  probe `yaml:"livenessProbe"`
	Readiness probe `yaml:"readinessProbe"`
	Mounts    []struct {
		MountPath string `yaml:"mountPath"`
		SubPath   string `yaml:"subPath"`
	} `yaml:"volumeMounts"`
}

type manifest struct {
	Kind string
	Spec struct {
		Template struct {
			Metadata struct{ Annotations map[string]string }
			Spec     struct {
				Grace          int         `yaml:"terminationGracePeriodSeconds"`
				InitContainers []container `yaml:"initContainers"`
				Containers     []container
			}
		}
	}
}

func TestManifests(t *testing.T) {
	dockerfile := read(t, "../Dockerfile")
	port := regexp.MustCompile(`(?m)^EXPOSE (\d+)$`).FindStringSubmatch(dockerfile)[1]
	user := regexp.MustCompile(`(?m)^USER (\d+):(\d+)$`).FindStringSubmatch(dockerfile)
	files, err := filepath.Glob("kubernetes/*.yaml")
	if err != nil || len(files) != 2 {
		t.Fatalf("%v, %v", files, err)
	}
	for _, file := range files {
		text, found := read(t, file), 0
		for _, words := range []string{"runAsUser: " + user[1], "runAsGroup: " + user[2], "fsGroup: " + user[2]} {
			if !strings.Contains(text, words) {
				t.Errorf("%s does not say %s", file, words)
			}
		}
		for documents := yaml.NewDecoder(strings.NewReader(text)); ; {
			var m manifest
			if err := documents.Decode(&m); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			pod := m.Spec.Template
			for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
				if slices.Contains(c.Args, "check") {
					t.Errorf("%s: check goes before a start", file)
				}
				if c.Name != "zulip-nats" {
					continue
				}
				found++
				if c.Startup.HTTPGet.Path != "/healthz" || c.Liveness.HTTPGet.Path != "/healthz" ||
					c.Readiness.HTTPGet.Path != "/readyz" {
					t.Errorf("%s: the probes are %v, %v, %v", file, c.Startup, c.Liveness, c.Readiness)
				}
				env := map[string]string{}
				for _, v := range c.Env {
					env[v.Name] = v.Value
				}
				if len(c.Ports) != 1 || strconv.Itoa(c.Ports[0].ContainerPort) != port || env["ZULIP_NATS_HTTP"] != ":"+port ||
					c.Ports[0].Name != c.Liveness.HTTPGet.Port || pod.Metadata.Annotations["prometheus.io/port"] != port {
					t.Errorf("%s: the ports are %v, the variables %v", file, c.Ports, env)
				}
				if len(c.Mounts) != 1 || c.Mounts[0].SubPath != "" || path.Dir(env["ZULIP_CONFIG"]) != c.Mounts[0].MountPath ||
					path.Dir(env["ZULIP_NATS_NATS_PASSWORD_FILE"]) != c.Mounts[0].MountPath {
					t.Errorf("%s: the secret is mounted at %v, the variables are %v", file, c.Mounts, env)
				}
				if pod.Spec.Grace < 10 {
					t.Errorf("%s: a stop gets %d s", file, pod.Spec.Grace)
				}
			}
		}
		if found != 1 {
			t.Errorf("%s has %d bridges", file, found)
		}
	}
}

// systemd gives up where the program says that a person has to mend something first, and
// asks nothing before a start.
func TestUnit(t *testing.T) {
	unit := map[string][]string{}
	for line := range strings.Lines(read(t, "systemd/zulip-nats.service")) {
		if name, value, is := strings.Cut(strings.TrimSpace(line), "="); is && !strings.HasPrefix(line, "#") {
			unit[name] = append(unit[name], value)
		}
	}
	var codes []string
	none := filepath.Join(t.TempDir(), "none")
	for _, args := range [][]string{{"run", "--no-such-option"}, {"run", "--zuliprc", none}} {
		codes = append(codes, strconv.Itoa(cli.Run(t.Context(), args, io.Discard, io.Discard)))
	}
	if got := unit["RestartPreventExitStatus"]; !slices.Equal(got, []string{strings.Join(codes, " ")}) {
		t.Errorf("RestartPreventExitStatus=%v, and the program ends with %v", got, codes)
	}
	for _, name := range slices.Sorted(maps.Keys(unit)) {
		if strings.HasPrefix(name, "Exec") && (name != "ExecStart" || len(unit[name]) != 1 ||
			!strings.HasSuffix(unit[name][0], "/zulip-nats run")) {
			t.Errorf("%s=%v", name, unit[name])
		}
	}
	if unit["Type"][0] != "notify" || unit["WatchdogSec"][0] != "30" || unit["LoadCredential"][0][:8] != "zuliprc:" ||
		!slices.Contains(unit["Environment"], "ZULIP_CONFIG=%d/zuliprc") {
		t.Errorf("the unit says %v", unit)
	}
}
