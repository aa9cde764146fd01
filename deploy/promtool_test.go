//go:build promtool

package deploy

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// expressions are all that the dashboard asks Prometheus for.
func (d *dashboard) expressions() (all []string) {
	for _, p := range d.Panels {
		for _, target := range p.Targets {
			all = append(all, target.Expr)
		}
	}
	return all
}

// TestDashboardSyntax lets promtool read all that the dashboard asks for, as rules, with
// something in the place of Grafana's variables.
func TestDashboardSyntax(t *testing.T) {
	d := readDashboard(t)
	var rules []map[string]string
	for i, expr := range d.expressions() {
		expr = strings.NewReplacer("$__rate_interval", "5m", "$realm", ".*").Replace(expr)
		rules = append(rules, map[string]string{"record": "panel_" + strconv.Itoa(i), "expr": expr})
	}
	data, err := json.Marshal(map[string]any{"groups": []any{map[string]any{"name": "dashboard", "rules": rules}}})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "rules.yml") // JSON is YAML
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("promtool", "check", "rules", file).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
