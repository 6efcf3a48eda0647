package policy

// reader is a Policy that says what of an object a decision depends on, beside its namespace and resource.
type reader interface {
	reads() (labels, object bool)
}

// Reads tells whether a decision may depend on the labels of the subject, and on its kind, metadata or specification. Where it does not,
// a decision about an image holds for all objects of the namespace and resource. A policy that does not say is taken to read all.
func (s *Set) Reads() (labels, object bool) { return reads(s.policies) }

func reads(policies []Policy) (labels, object bool) {
	for _, p := range policies {
		l, o := true, true
		if r, ok := p.(reader); ok {
			l, o = r.reads()
		}
		labels, object = labels || l, object || o
	}
	return labels, object
}

func (p *clusterImagePolicy) reads() (labels, object bool) {
	for _, m := range p.match {
		labels = labels || m.selector != nil
	}
	return labels, p.includeSpec || p.includeObjectMeta || p.includeTypeMeta
}

func (p *sigstorePolicy) reads() (labels, object bool) { return false, false }

func (c *combination) reads() (labels, object bool) {
	var all []Policy
	for _, p := range c.policies {
		all = append(all, p)
	}
	return reads(all)
}
