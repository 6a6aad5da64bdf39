{{- define "stablesr.name" -}}
{{- $name := .Release.Name -}}
{{- if not (contains "stablesr" $name) }}{{ $name = printf "%s-stablesr" $name }}{{ end -}}
{{- $name | trunc 30 | trimSuffix "-" -}}
{{- end }}

{{- define "stablesr.selector" -}}
app.kubernetes.io/name: stablesr
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "stablesr.labels" -}}
{{ include "stablesr.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- /* Of every pod. Without service links: a Service named stablesr would set STABLESR_PORT. */}}
{{- define "stablesr.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.images.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{- /* The user of the project's images, which also owns the volumes. */}}
{{- define "stablesr.user" -}}
runAsNonRoot: true
runAsUser: {{ . }}
runAsGroup: {{ . }}
fsGroup: {{ . }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "stablesr.hardened" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- /* A dict of variables. Helm's numbers are floats, which `quote` alone writes as 5e+07. */}}
{{- define "stablesr.env" -}}
{{- range $name, $value := . }}
- name: {{ $name }}
  value: {{ ternary $value (toJson $value) (kindIs "string" $value) | quote }}
{{- end }}
{{- end }}

{{- define "stablesr.redisSecret" -}}
{{ .Values.redis.existingSecret | default (printf "%s-redis" (include "stablesr.name" .)) }}
{{- end }}

{{- define "stablesr.redisUrl" -}}
- name: STABLESR_REDIS_URL
  valueFrom: {secretKeyRef: {name: {{ include "stablesr.redisSecret" . }}, key: url}}
{{- end }}

{{- define "stablesr.defaultPreset" -}}
{{ .Values.service.defaultPreset | default (first .Values.presets).preset }}
{{- end }}

{{- /* Where images are: of service and workers. */}}
{{- define "stablesr.storeEnv" -}}
{{- with .Values.store.existingSecret }}
envFrom:
  - secretRef: {name: {{ . }}}
{{- end }}
{{- end }}

{{- /* (name of a volume, its values, name of the release): a claim, or what ends with the pod. */}}
{{- define "stablesr.volume" -}}
{{- $claim := index . 1 -}}
- name: {{ index . 0 }}
{{- if or $claim.existing $claim.size }}
  persistentVolumeClaim:
    claimName: {{ $claim.existing | default (printf "%s-%s" (index . 2) (index . 0)) }}
{{- else }}
  emptyDir: {}
{{- end }}
{{- end }}

{{- define "stablesr.tmp" -}}
- name: tmp
  emptyDir: {medium: Memory, sizeLimit: 256Mi}
{{- end }}

{{- /* As localhost, since STABLESR_ALLOWED_HOSTS may know no addresses. */}}
{{- define "stablesr.probe" -}}
httpGet:
  path: {{ . }}
  port: http
  httpHeaders: [{name: Host, value: localhost}]
{{- end }}

{{- /* (root, path of a file of rules or of a dashboard): of this release's processes alone, by the
labels that the Prometheus operator gives what a ServiceMonitor and a PodMonitor find. */}}
{{- define "stablesr.scoped" -}}
{{- $root := index . 0 -}}
{{- $name := include "stablesr.name" $root -}}
{{- $namespace := printf "namespace='%s'" $root.Release.Namespace -}}
{{- $workers := printf "%s/%s-worker" $root.Release.Namespace $name -}}
{{- $root.Files.Get (index . 1)
  | replace "job='stablesr'" (printf "%s,service='%s'" $namespace $name)
  | replace "job='stablesr-workers'" (printf "%s,job='%s'" $namespace $workers)
  | replace "job=~'stablesr|stablesr-workers'" (printf "%s,job=~'%s|%s'" $namespace $name $workers)
  | replace "\"title\": \"StableSR\"" (printf "\"title\": \"StableSR %s/%s\"" $root.Release.Namespace $name) -}}
{{- end }}
