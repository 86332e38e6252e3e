// Laid over FerretDB v1.24's package for SQLite when the tests' server is built (see mongo_server.py).
//
// As released it gives SQLite a condition only where the whole filter is one `_id`; for any other it reads and decodes every
// document of the collection, at 0.4 ms each. Here conditions on texts and numbers at the top of a document are given to
// SQLite, too. They only narrow what is read: a document that may fit always passes (so an array does, whatever is in it),
// and FerretDB's own filter decides after that, as before.
package sqlite

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/FerretDB/FerretDB/internal/backends/sqlite/metadata"
	"github.com/FerretDB/FerretDB/internal/handler/sjson"
	"github.com/FerretDB/FerretDB/internal/types"
	"github.com/FerretDB/FerretDB/internal/util/must"
)

var (
	plainName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	comparing = map[string]string{"$eq": "=", "$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
)

func narrowed(filter *types.Document) (string, []any) {
	var conditions []string
	var args []any
	add := func(condition string, values ...any) {
		if condition != "" {
			conditions = append(conditions, condition)
			args = append(args, values...)
		}
	}
	for _, name := range filter.Keys() {
		if !plainName.MatchString(name) {
			continue
		}
		switch value := must.NotFail(filter.Get(name)).(type) {
		case *types.Document:
			for _, operator := range value.Keys() {
				operand := must.NotFail(value.Get(operator))
				if list, ok := operand.(*types.Array); ok && operator == "$in" {
					add(anyOf(name, list))
				} else if sign, ok := comparing[operator]; ok {
					add(compared(name, sign, operand))
				}
			}
		default:
			add(compared(name, "=", value))
		}
	}
	if len(conditions) == 0 {
		return "", nil
	}
	return " WHERE " + strings.Join(conditions, " AND "), args
}

func compared(name, sign string, value any) (string, any) {
	path := fmt.Sprintf(`%s, '$."%s"'`, metadata.DefaultColumn, name)
	switch value := value.(type) {
	case types.ObjectID:
		if name == "_id" && sign == "=" {
			return metadata.IDColumn + " = ?", marshalled(value)
		}
	case string:
		if name == "_id" && sign == "=" {
			return metadata.IDColumn + " = ?", marshalled(value)
		}
		return fmt.Sprintf("(json_type(%s) <> 'text' OR json_extract(%s) %s ?)", path, path, sign), value
	case int32, int64:
		return fmt.Sprintf("(json_type(%s) NOT IN ('integer', 'real') OR json_extract(%s) %s ?)", path, path, sign), value
	}
	return "", nil
}

func anyOf(name string, list *types.Array) (string, any) {
	values := make([]string, list.Len())
	for i := range values {
		value, ok := must.NotFail(list.Get(i)).(string)
		if !ok {
			return "", nil
		}
		values[i] = marshalled(value)
	}
	column := fmt.Sprintf(`%s->'$."%s"'`, metadata.DefaultColumn, name)
	other := fmt.Sprintf(`json_type(%s, '$."%s"') <> 'text' OR `, metadata.DefaultColumn, name)
	if name == "_id" {
		column, other = metadata.IDColumn, ""
	}
	return fmt.Sprintf("(%s%s IN (SELECT value FROM json_each(?)))", other, column), quoted(values)
}

func marshalled(value any) string {
	return string(must.NotFail(sjson.MarshalSingleValue(value)))
}

// quoted returns a JSON array of texts that are JSON themselves: the form in which the column -> gives a text.
func quoted(values []string) string {
	texts := make([]string, len(values))
	for i, value := range values {
		texts[i] = marshalled(value)
	}
	return "[" + strings.Join(texts, ",") + "]"
}
