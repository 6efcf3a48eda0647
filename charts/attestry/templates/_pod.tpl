{{/*
The pod of a role. Call with a dict:
  root, role   the chart's context; ca, tlog, tsa, tuf, admission, keys
  image        key of .Values.images
  args         of the container
  mounts, volumes, env   lists of its own
  api          whether it calls the API server
*/}}
{{- define "attestry.pod" -}}
{{- $root := .root -}}
{{- $v := index $root.Values .role | default dict -}}
{{- $trust := $root.Values.global.trustedCA -}}
metadata:
  labels:
    {{- include "attestry.labels" (list $root .role) | nindent 4 }}
    {{- with $v.podLabels }}{{ toYaml . | nindent 4 }}{{ end }}
  annotations:
    {{- with .config }}
    checksum/config: {{ sha256sum . }}
    {{- end }}
    kubectl.kubernetes.io/default-container: {{ .role }}
    {{- with $v.podAnnotations }}{{ toYaml . | nindent 4 }}{{ end }}
spec:
  serviceAccountName: {{ include "attestry.name" (list $root .role) }}
  automountServiceAccountToken: {{ .api | default false }}
  enableServiceLinks: false
  {{- with $root.Values.global.imagePullSecrets }}
  imagePullSecrets: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $v.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  securityContext: {{- include "attestry.podSecurity" $root | nindent 4 }}
  terminationGracePeriodSeconds: {{ $root.Values.terminationGracePeriodSeconds }}
  {{- with $v.nodeSelector }}
  nodeSelector: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $v.tolerations }}
  tolerations: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if $v.affinity }}
  affinity: {{- toYaml $v.affinity | nindent 4 }}
  {{- end }}
  {{- if .spread }}
  topologySpreadConstraints:
    {{- if kindIs "invalid" $v.topologySpreadConstraints }}
    {{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
    - maxSkew: 1
      topologyKey: {{ . }}
      whenUnsatisfiable: ScheduleAnyway
      labelSelector: {matchLabels: {{ include "attestry.match" (list $root $.role) }}}
    {{- end }}
    {{- else }}
    {{- toYaml $v.topologySpreadConstraints | nindent 4 }}
    {{- end }}
  {{- end }}
  containers:
    - name: {{ .role }}
      image: {{ include "attestry.image" (list $root .image) }}
      imagePullPolicy: {{ $root.Values.images.pullPolicy }}
      args: {{- toYaml .args | nindent 8 }}
      {{- if or .env $v.extraEnv (include "attestry.trusts" $root) }}
      env:
        {{- with .env }}{{ toYaml . | nindent 8 }}{{ end }}
        {{- if include "attestry.trusts" $root }}
        - {name: SSL_CERT_FILE, value: /etc/attestry/trust/{{ $trust.key }}}
        {{- end }}
        {{- with $v.extraEnv }}{{ toYaml . | nindent 8 }}{{ end }}
      {{- end }}
      securityContext: {{- include "attestry.containerSecurity" $root | nindent 8 }}
      {{- with $v.resources }}
      resources: {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- if .ports }}
      ports: {{- toYaml .ports | nindent 8 }}
      lifecycle: {preStop: {sleep: {seconds: {{ $root.Values.preStopSeconds }}}}}
      startupProbe: {httpGet: {path: /healthz, port: ops}, periodSeconds: 1, failureThreshold: 600}
      livenessProbe: {httpGet: {path: /healthz, port: ops}, periodSeconds: 10, timeoutSeconds: 5, failureThreshold: 6}
      readinessProbe: {httpGet: {path: /readyz, port: ops}, periodSeconds: 2, timeoutSeconds: 5, failureThreshold: 3}
      {{- end }}
      volumeMounts:
        - {name: tmp, mountPath: /tmp}
        {{- if include "attestry.trusts" $root }}
        - {name: trust, mountPath: /etc/attestry/trust, readOnly: true}
        {{- end }}
        {{- with .mounts }}{{ toYaml . | nindent 8 }}{{ end }}
        {{- with $v.extraVolumeMounts }}{{ toYaml . | nindent 8 }}{{ end }}
  volumes:
    - {name: tmp, emptyDir: {sizeLimit: 1Gi}}
    {{- if include "attestry.trusts" $root }}
    - name: trust
      {{- if $trust.configMap }}
      configMap: {name: {{ $trust.configMap }}}
      {{- else }}
      secret: {secretName: {{ $trust.secret }}, defaultMode: 0440}
      {{- end }}
    {{- end }}
    {{- with .volumes }}{{ toYaml . | nindent 4 }}{{ end }}
    {{- with $v.extraVolumes }}{{ toYaml . | nindent 4 }}{{ end }}
{{- end -}}

{{- define "attestry.trusts" -}}
{{- if or .Values.global.trustedCA.configMap .Values.global.trustedCA.secret }}true{{ end -}}
{{- end -}}

{{- define "attestry.podSecurity" -}}
runAsNonRoot: true
{{- if not .Values.openshift }}
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
{{- end }}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "attestry.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "attestry.serviceAccount" -}}
apiVersion: v1
kind: ServiceAccount
metadata: {{- include "attestry.meta" . | nindent 2 }}
automountServiceAccountToken: false
{{- end -}}

{{/* (list . ROLE PORT) */}}
{{- define "attestry.service" -}}
{{- $root := index . 0 -}}
{{- $role := index . 1 -}}
{{- $s := (index $root.Values $role).service -}}
apiVersion: v1
kind: Service
metadata:
  {{- include "attestry.meta" (list $root $role) | nindent 2 }}
  {{- with $s.annotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  type: {{ $s.type }}
  selector: {{- include "attestry.selector" (list $root $role) | nindent 4 }}
  ports:
    - {name: http, port: {{ $s.port }}, targetPort: http{{ with $s.nodePort }}, nodePort: {{ . }}{{ end }}}
{{- end -}}

{{/* (list . NAME PERSISTENCE): a claim that stays when the release goes. */}}
{{- define "attestry.claim" -}}
{{- $root := index . 0 -}}
{{- $p := index . 2 -}}
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  {{- include "attestry.meta" (list $root (index . 1)) | nindent 2 }}
  annotations: {helm.sh/resource-policy: keep}
spec: {{- include "attestry.claimSpec" $p | nindent 2 }}
{{- end -}}

{{- define "attestry.claimSpec" -}}
accessModes: [ReadWriteOnce]
{{- if not (kindIs "invalid" .storageClass) }}
storageClassName: {{ .storageClass | quote }}
{{- end }}
resources: {requests: {storage: {{ .size }}}}
{{- end -}}

{{/* (list . ROLE KIND) */}}
{{- define "attestry.autoscaler" -}}
{{- $root := index . 0 -}}
{{- $role := index . 1 -}}
{{- $a := (index $root.Values $role).autoscaling -}}
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {{- include "attestry.meta" (list $root $role) | nindent 2 }}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: {{ index . 2 }}, name: {{ include "attestry.name" (list $root $role) }}}
  minReplicas: {{ $a.minReplicas }}
  maxReplicas: {{ $a.maxReplicas }}
  metrics:
    - type: Resource
      resource: {name: cpu, target: {type: Utilization, averageUtilization: {{ $a.cpu }}}}
{{- end -}}

{{/* (list . NAME TEXT-OF-YAML-BY-FILE) */}}
{{- define "attestry.config" -}}
apiVersion: v1
kind: ConfigMap
metadata: {{- include "attestry.meta" (list (index . 0) (index . 1)) | nindent 2 }}
data:
  {{- range $name, $text := index . 2 }}
  {{ $name }}: |
    {{- $text | nindent 4 }}
  {{- end }}
{{- end -}}
