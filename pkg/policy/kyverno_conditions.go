package policy

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jmespath/go-jmespath"
	"golang.org/x/mod/semver"
	"k8s.io/apimachinery/pkg/api/resource"
)

const (
	maxConditions = 64
	maxJMESPath   = 2 << 10
)

// kyvernoConditions is one item of an attestation's conditions: all of all, and one of any if there are some.
type kyvernoConditions struct {
	Any []kyvernoCondition `json:"any"`
	All []kyvernoCondition `json:"all"`
}

type kyvernoCondition struct {
	Key      free   `json:"key"`
	Operator string `json:"operator"`
	Value    free   `json:"value"`
	Message  string `json:"message"`
}

type conditionSet struct{ any, all []condition }

type condition struct {
	key, value template
	operator   string // lower case
	message    string
}

// compileConditions compiles conditions over the predicate of an attestation. Operators, functions and variables that are not
// understood are refused.
func compileConditions(where string, list []kyvernoConditions) ([]conditionSet, error) {
	var all []conditionSet
	for i, c := range list {
		where := fmt.Sprintf("%s[%d]", where, i)
		if n := len(c.Any) + len(c.All); n == 0 || n > maxConditions {
			return nil, fmt.Errorf("%s: any or all with 1 to %d conditions is required", where, maxConditions)
		}
		var set conditionSet
		for _, part := range []struct {
			name string
			from []kyvernoCondition
			to   *[]condition
		}{{"any", c.Any, &set.any}, {"all", c.All, &set.all}} {
			for j, one := range part.from {
				compiled, err := compileCondition(one)
				if err != nil {
					return nil, fmt.Errorf("%s.%s[%d]: %w", where, part.name, j, err)
				}
				*part.to = append(*part.to, *compiled)
			}
		}
		all = append(all, set)
	}
	return all, nil
}

func compileCondition(from kyvernoCondition) (*condition, error) {
	c := &condition{operator: strings.ToLower(from.Operator), message: from.Message}
	switch c.operator {
	case "equals", "equal":
		c.operator = "equals"
	case "notequals", "notequal":
		c.operator = "notequals"
	case "anyin", "allin", "anynotin", "allnotin", "greaterthan", "greaterthanorequals", "lessthan", "lessthanorequals":
	case "in", "notin":
		return nil, fmt.Errorf("operator %q is deprecated: use AnyIn, AllIn, AnyNotIn or AllNotIn", from.Operator)
	case "durationgreaterthan", "durationgreaterthanorequals", "durationlessthan", "durationlessthanorequals":
		return nil, fmt.Errorf("operator %q is deprecated: %s compares durations too", from.Operator, from.Operator[len("Duration"):])
	default:
		return nil, fmt.Errorf("operator %q is not known", from.Operator)
	}
	var err error
	if c.key, err = newTemplate(from.Key.value); err != nil {
		return nil, fmt.Errorf("key: %w", err)
	}
	if c.value, err = newTemplate(from.Value.value); err != nil {
		return nil, fmt.Errorf("value: %w", err)
	}
	if text, ok := c.value.literal.(string); ok && strings.HasSuffix(c.operator, "in") && (rangePattern.MatchString(text) || json.Valid([]byte(text))) {
		return nil, fmt.Errorf("value %q: write a list for operator %s; ranges and JSON in a string are not supported", text, from.Operator)
	}
	return c, nil
}

var rangePattern = regexp.MustCompile(`^[-+]?\d+(\.\d+)?[A-Za-z]*!?-[-+]?\d+(\.\d+)?[A-Za-z]*$`)

// hold says which condition does not hold over a predicate.
func (s *conditionSet) hold(predicate any) error {
	for i := range s.all {
		if err := s.all[i].hold(predicate); err != nil {
			return err
		}
	}
	var first error
	for i := range s.any {
		err := s.any[i].hold(predicate)
		if err == nil {
			return nil
		}
		if first == nil {
			first = err
		}
	}
	return first
}

func (c *condition) hold(predicate any) error {
	key, err := c.key.resolve(predicate)
	if err != nil {
		return err
	}
	value, err := c.value.resolve(predicate)
	if err != nil {
		return err
	}
	if c.compare(key, value) {
		return nil
	}
	if c.message != "" {
		return errors.New(c.message)
	}
	return fmt.Errorf("%s is %s, which is not %s %s", c.key.text, shortJSON(key), c.operator, shortJSON(value))
}

func shortJSON(v any) string {
	raw, err := json.Marshal(v)
	if err != nil || len(raw) > 200 {
		return "a long value"
	}
	return string(raw)
}

func (c *condition) compare(key, value any) bool {
	switch c.operator {
	case "equals":
		return equalValues(key, value)
	case "notequals":
		return !equalValues(key, value)
	case "anyin", "allin", "anynotin", "allnotin":
		return inValues(c.operator, key, value)
	}
	order, ok := compareValues(key, value)
	if !ok {
		return false
	}
	switch c.operator {
	case "greaterthan":
		return order > 0
	case "greaterthanorequals":
		return order >= 0
	case "lessthan":
		return order < 0
	default:
		return order <= 0
	}
}

// equalValues compares as Kyverno's Equals: durations and quantities by what they mean, strings with wildcards in the policy's,
// numbers also with a number in a string.
func equalValues(key, value any) bool {
	switch k := key.(type) {
	case string:
		v, ok := value.(string)
		if !ok {
			order, ok := compareDurations(key, value)
			return ok && order == 0
		}
		if order, ok := compareDurations(k, v); ok {
			return order == 0
		}
		if a, ok := quantityOf(k); ok {
			b, ok := quantityOf(v)
			return ok && a.Cmp(b) == 0
		}
		w, err := newWildcard(v)
		return err == nil && w.re.MatchString(k) || k == v
	case float64:
		if text, ok := value.(string); ok {
			parsed, err := strconv.ParseFloat(text, 64)
			return err == nil && parsed == k
		}
	}
	return reflect.DeepEqual(key, value)
}

// inValues reads a single key or value as a list of one. Wildcards count in the policy's values. Where something must not be
// found they count on both sides, as in Kyverno; where it must, a predicate full of stars would pass there and not here.
func inValues(operator string, key, value any) bool {
	keys, values := asTexts(key), asTexts(value)
	negative := strings.HasSuffix(operator, "notin")
	has := func(k string) bool {
		return slices.ContainsFunc(values, func(v string) bool {
			if k == v {
				return true
			}
			if w, err := newWildcard(v); err == nil && w.re.MatchString(k) {
				return true
			}
			w, err := newWildcard(k)
			return negative && err == nil && w.re.MatchString(v)
		})
	}
	hasNot := func(k string) bool { return !has(k) }
	switch operator {
	case "anyin":
		return slices.ContainsFunc(keys, has)
	case "allin":
		return !slices.ContainsFunc(keys, hasNot)
	case "anynotin":
		return slices.ContainsFunc(keys, hasNot)
	default:
		return !slices.ContainsFunc(keys, has)
	}
}

func asTexts(v any) []string {
	list, ok := v.([]any)
	if !ok {
		list = []any{v}
	}
	var texts []string
	for _, e := range list {
		if s, ok := e.(string); ok {
			texts = append(texts, s)
			continue
		}
		texts = append(texts, shortJSON(e))
	}
	return texts
}

// compareValues orders durations, quantities, numbers and versions; ok is false for anything else.
func compareValues(key, value any) (order int, ok bool) {
	if order, ok := compareDurations(key, value); ok {
		return order, true
	}
	a, okA := quantityOf(key)
	b, okB := quantityOf(value)
	if okA && okB {
		return a.Cmp(b), true
	}
	k, okK := key.(string)
	v, okV := value.(string)
	if okK && okV && fullVersion(k) && fullVersion(v) {
		return semver.Compare("v"+k, "v"+v), true
	}
	return 0, false
}

func fullVersion(s string) bool {
	core, _, _ := strings.Cut(strings.SplitN(s, "+", 2)[0], "-")
	return semver.IsValid("v"+s) && strings.Count(core, ".") == 2
}

// compareDurations takes "90s" and the like; beside one a number means seconds.
func compareDurations(key, value any) (order int, ok bool) {
	a, isA, okA := duration(key)
	b, isB, okB := duration(value)
	if !isA && !isB || !okA || !okB {
		return 0, false
	}
	switch {
	case a < b:
		return -1, true
	case a > b:
		return 1, true
	}
	return 0, true
}

// duration also returns whether v is written as one, and whether it can be read as one.
func duration(v any) (d time.Duration, written, ok bool) {
	switch x := v.(type) {
	case string:
		d, err := time.ParseDuration(x)
		written = err == nil && x != "0"
		return d, written, written
	case float64:
		return time.Duration(x) * time.Second, false, true
	}
	return 0, false, false
}

// quantityOf reads a number, or a quantity of Kubernetes.
func quantityOf(v any) (resource.Quantity, bool) {
	text, ok := v.(string)
	if n, number := v.(float64); number {
		text, ok = strconv.FormatFloat(n, 'f', -1, 64), true
	}
	if !ok || len(text) > 64 {
		return resource.Quantity{}, false
	}
	q, err := resource.ParseQuantity(text)
	return q, err == nil
}

// template is a value in which {{ JMESPath }} stands for what the predicate has there.
type template struct {
	text    string // for messages
	literal any    // without variables: JSON's types
	parts   []templatePart
}

type templatePart struct {
	text string
	path *jmespath.JMESPath // nil for plain text
}

var (
	variablePattern = regexp.MustCompile(`\{\{(.*?)\}\}`)
	functionPattern = regexp.MustCompile(`ASTFunctionExpression \{\s*value: "([^"]*)"`)
	fieldPattern    = regexp.MustCompile(`ASTField \{\s*value: "([^"]*)"`)
)

func newTemplate(from any) (template, error) {
	raw, err := json.Marshal(from)
	if err != nil {
		return template{}, fmt.Errorf("a value that JSON does not have: %w", err)
	}
	t := template{text: shortJSON(from)}
	if err := json.Unmarshal(raw, &t.literal); err != nil {
		return t, err
	}
	if t.literal == nil {
		return t, errors.New("it is required")
	}
	text, ok := t.literal.(string)
	if !ok {
		if strings.Contains(string(raw), "{{") {
			return t, errors.New("variables inside lists and mappings are not supported")
		}
		return t, nil
	}
	t.text = text
	end := 0
	for _, m := range variablePattern.FindAllStringSubmatchIndex(text, -1) {
		if m[0] > end {
			t.parts = append(t.parts, templatePart{text: text[end:m[0]]})
		}
		path, err := compilePath(strings.TrimSpace(text[m[2]:m[3]]))
		if err != nil {
			return t, err
		}
		t.parts = append(t.parts, templatePart{path: path})
		end = m[1]
	}
	if t.parts != nil && end < len(text) {
		t.parts = append(t.parts, templatePart{text: text[end:]})
	}
	if strings.Contains(text[end:], "{{") {
		return t, errors.New("{{ without }}")
	}
	return t, nil
}

// compilePath refuses Kyverno's own functions and what its context holds beside the predicate.
func compilePath(text string) (*jmespath.JMESPath, error) {
	if len(text) > maxJMESPath {
		return nil, fmt.Errorf("an expression is over %d bytes", maxJMESPath)
	}
	tree, err := jmespath.NewParser().Parse(text)
	if err != nil {
		return nil, fmt.Errorf("%q: %w", text, err)
	}
	shown := tree.PrettyPrint(0)
	for _, m := range functionPattern.FindAllStringSubmatch(shown, -1) {
		if !slices.Contains(strings.Fields(jmespathFunctions), m[1]) {
			return nil, fmt.Errorf("%q: function %s is not one of JMESPath's own", text, m[1])
		}
	}
	if m := fieldPattern.FindStringSubmatch(shown); m != nil && slices.Contains(strings.Fields(kyvernoContext), m[1]) {
		return nil, fmt.Errorf("%q: %s is not of the attestation, and not known here", text, m[1])
	}
	return jmespath.Compile(text)
}

const (
	jmespathFunctions = "abs avg ceil contains ends_with floor join keys length map max max_by merge min min_by not_null " +
		"reverse sort sort_by starts_with sum to_array to_number to_string type values"
	kyvernoContext = "request element elementIndex images image target serviceAccountName serviceAccountNamespace"
)

// resolve puts in what the predicate has. What is not there is an error, so that no operator passes by absence.
func (t *template) resolve(predicate any) (any, error) {
	if t.parts == nil {
		return t.literal, nil
	}
	var b strings.Builder
	for _, p := range t.parts {
		if p.path == nil {
			b.WriteString(p.text)
			continue
		}
		found, err := p.path.Search(predicate)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", t.text, err)
		}
		if found == nil {
			return nil, fmt.Errorf("%s is not in the attestation", t.text)
		}
		if len(t.parts) == 1 {
			return found, nil
		}
		switch x := found.(type) {
		case string:
			b.WriteString(x)
		case bool, float64:
			b.WriteString(shortJSON(x))
		default:
			return nil, fmt.Errorf("%s: a list or mapping inside a text", t.text)
		}
	}
	return b.String(), nil
}
