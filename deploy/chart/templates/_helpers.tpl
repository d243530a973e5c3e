{{- define "enoki.fullname" -}}
{{- default .Chart.Name .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "enoki.serviceAccountName" -}}
{{- default (include "enoki.fullname" .) .Values.serviceAccount.name -}}
{{- end -}}

{{- define "enoki.selectorLabels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
{{- end -}}

{{- define "enoki.labels" -}}
{{ include "enoki.selectorLabels" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{- /* override, else overrideRepository:tag */ -}}
{{- define "enoki.image" -}}
{{- with .Values.image -}}
{{- .override | default (printf "%s:%s" .overrideRepository (.tag | default $.Chart.AppVersion)) -}}
{{- end -}}
{{- end -}}

{{- define "enoki.initImage" -}}
{{- with .Values.init.image -}}
{{- if .override -}}
{{- .override -}}
{{- else if .overrideRepository -}}
{{- printf "%s:%s" .overrideRepository (.tag | default $.Chart.AppVersion) -}}
{{- else -}}
{{- include "enoki.image" $ -}}
{{- end -}}
{{- end -}}
{{- end -}}
